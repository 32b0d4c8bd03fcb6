"""Reading rows for training: checking them beside pydantic, tokens and masks beside `datasets.map`.

    python benchmarks/training_rows.py .peers/training/bin/python [--write benchmarks/README.md]

The same rows, tokenizer and template; every measurement is a process of its own, and rounds take turns.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import report

HEADING = "## Rows for training, beside datasets.map and pydantic"
ROUNDS = 3


def check(rows: Path, _: Path) -> int:
    """Ours: every fault of every row."""
    from maas_client.spec import dataset

    return dataset.check(rows, "chat_completion").rows


def check_pydantic(rows: Path, _: Path) -> int:
    """A BaseModel as strict as our check: roles, words that are not empty, nothing unknown."""
    from pydantic import BaseModel, ConfigDict, StringConstraints

    class Message(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)
        role: Literal["system", "user", "assistant"]
        content: Annotated[str, StringConstraints(min_length=1)]
        weight: Literal[0, 1] = 1

    class Row(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)
        messages: list[Message]

    Message.model_rebuild(_types_namespace=globals() | locals())
    Row.model_rebuild(_types_namespace=globals() | locals())
    count = 0
    with rows.open("rb") as lines:
        for line in lines:
            Row.model_validate_json(line)
            count += 1
    return count


def load(rows: Path, model: Path) -> int:
    """Ours: template, tokens and which of them are trained."""
    from local_runner.data import ChatTokenizer, load_examples

    return sum(len(row.ids) for row in load_examples(ChatTokenizer(model), rows, max_length=4096))


def load_datasets(rows: Path, model: Path) -> int:
    """`datasets.map` with transformers' template and its mask of the assistant's tokens."""
    from datasets import Dataset, disable_caching
    from transformers import AutoTokenizer

    disable_caching()
    tokenizer = AutoTokenizer.from_pretrained(f"{model}-peer")

    def code(part: dict[str, list[Any]]) -> dict[str, Any]:
        made = tokenizer.apply_chat_template(
            part["messages"], return_dict=True, return_assistant_tokens_mask=True
        )
        return {"ids": made["input_ids"], "trained": made["assistant_masks"]}

    data = Dataset.from_json(str(rows), cache_dir=str(rows.parent / f"cache-{time.time_ns()}"))
    made = data.map(code, batched=True, remove_columns=["messages"])
    return sum(map(len, made["ids"]))


WORKS: dict[str, Callable[[Path, Path], int]] = {
    "check": check,
    "check_pydantic": check_pydantic,
    "load": load,
    "load_datasets": load_datasets,
}
PAIRS = {
    "checked, beside pydantic's BaseModel": ("check", "check_pydantic"),
    "as tokens and masks, beside datasets.map": ("load", "load_datasets"),
}


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("peer", help="the Python of the peers' environment")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--work", help="what a child does")
    given = parser.parse_args()
    if given.work:
        work(given.work, Path(given.peer))
        return
    text = run(given)
    report.tell(text, HEADING, given.write)


def work(name: str, folder: Path) -> None:
    """In the child: once, on the clock and on the processor's; imports are not counted."""
    rows, model = folder / "rows.jsonl", folder / "set" / "S"
    few = folder / "few.jsonl"
    WORKS[name](few, model)
    began, worked = time.perf_counter(), sum(os.times()[:4])
    count = WORKS[name](rows, model)
    spent = time.perf_counter() - began, sum(os.times()[:4]) - worked
    print(json.dumps({"count": count, "seconds": spent[0], "cpu": spent[1]}))


def run(given: argparse.Namespace) -> str:
    import training_set

    before = os.getloadavg()[0]
    lines = [
        "| rows | ours, rows/s | peer, rows/s | ours / peer | by CPU time |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        training_set.make(folder / "set", rows=2000)
        some = (folder / "set" / "chats.jsonl").read_text().splitlines(keepends=True)
        (folder / "few.jsonl").write_text("".join(some[:50]))
        with (folder / "rows.jsonl").open("w") as file:
            for place in range(given.rows):
                # No two rows alike: a cache must not make either side quick.
                file.write(
                    some[place % len(some)].replace('"content": "', f'"content": "{place} ', 1)
                )
        for words, pair in PAIRS.items():
            pythons = (sys.executable, given.peer)
            found: dict[str, list[dict[str, float]]] = {work: [] for work in pair}
            for _ in range(given.rounds):
                for python, each in zip(pythons, pair, strict=True):
                    found[each].append(_child(python, each, folder))
            speeds = {
                (each, of): statistics.median(given.rows / result[of] for result in found[each])
                for each in pair
                for of in ("seconds", "cpu")
            }
            ours, peer = pair
            ratios = [speeds[ours, of] / speeds[peer, of] for of in ("seconds", "cpu")]
            lines.append(
                f"| {words} | {speeds[ours, 'seconds']:,.0f} | {speeds[peer, 'seconds']:,.0f}"
                f" | {ratios[0]:.1f} | {ratios[1]:.1f} |"
            )
    lines += [
        "",
        f"{given.rows:,} chats of about 322 tokens, medians of {given.rounds} rounds that take turns."
        f" {dt.datetime.now(tz=dt.UTC):%Y-%m-%d}, {os.cpu_count()} cores, load before {before:.1f}.",
    ]
    return "\n".join(lines)


def _child(python: str, name: str, folder: Path) -> dict[str, float]:
    command = [python, __file__, str(folder), "--work", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    made: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(name, made, flush=True)
    return made


if __name__ == "__main__":
    main()
