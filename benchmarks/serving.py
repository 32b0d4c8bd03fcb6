"""Answers of the stand-in: our batch, and transformers' `generate`, side by side in one process.

    python benchmarks/serving.py [--base stand-in] [--write benchmarks/README.md]

The same weights, questions and adapters, greedy, up to the same number of tokens. Rounds take turns. Whether
the tokens are the same is looked at, too.
"""

from __future__ import annotations

import datetime as dt
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import report
import torch
import transformers

from local_runner import adapters
from local_runner.generate import Answerer, Ask
from local_runner.models import base as bases
from local_runner.models.family import ARCHITECTURES
from local_runner.speech import Ending

HEADING = "## Answers, beside transformers' generate"
ROUNDS = 3
TOKENS = 32
RANK = 16
QUESTIONS = (
    "What is a lighthouse?",
    "Name three rivers of Europe, and say where each of them ends.",
    "How is bread made? Tell it step by step, for somebody who has never been in a kitchen.",
    "Write a short letter to a neighbour who has lent you a ladder.",
    "Why is the sky blue?",
    "A train leaves at nine and arrives at noon; it has gone 240 kilometres. How fast was it, and why?",
    "Explain to a child what an adapter of a language model is.",
    "List what one packs for a week in the mountains in autumn, and what each thing is for.",
)

Ids = list[list[int]]
Way = Callable[[Sequence[Ask]], Ids]


class Peer:
    """transformers as its user has it; with peft, which is asked for an adapter by name."""

    def __init__(self, base: bases.Base, answerer: Answerer, folders: Sequence[Path]) -> None:
        model: Any = bases.load(base).eval()
        ends = model.generation_config.eos_token_id
        self._ends = [ends] if isinstance(ends, int) else ends
        self._tokenizer = answerer.tokenizer
        self._pad = answerer.tokenizer.eos_id
        for folder in folders:
            model = adapters.open_on(model, folder, name=folder.name).eval()
        self._model = model

    def one_by_one(self, asks: Sequence[Ask]) -> Ids:
        """One request after another."""
        made = []
        for ask in asks:
            if ask.adapter is not None:
                self._model.set_adapter(ask.adapter.name)
            made += self._generate([ask])
        return made

    def padded(self, asks: Sequence[Ask]) -> Ids:
        """All of them as one batch, padded on the left; adapters by peft's `adapter_names`."""
        names = [ask.adapter.name for ask in asks if ask.adapter is not None]
        more = {"adapter_names": names} if len(set(names)) > 1 else {}
        return self._generate(asks, **more)

    def _generate(self, asks: Sequence[Ask], **more: Any) -> Ids:
        prompts = [self._tokenizer.prompt(ask.messages) for ask in asks]
        longest = max(map(len, prompts))
        rows = [[self._pad] * (longest - len(ids)) + ids for ids in prompts]
        mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
        made = self._model.generate(
            input_ids=torch.tensor(rows),
            attention_mask=torch.tensor(mask),
            max_new_tokens=asks[0].max_tokens,
            do_sample=False,
            pad_token_id=self._pad,
            **more,
        )
        return [self._whole(row) for row in made[:, longest:].tolist()]

    def _whole(self, ids: list[int]) -> list[int]:
        """Up to the token that ends the answer; what a batch adds behind it is no answer."""
        ends = [place for place, token in enumerate(ids) if token in self._ends]
        return ids[: ends[0] + 1] if ends else ids


def ours(answerer: Answerer) -> Way:
    """All requests at once, through the batch."""

    def run(asks: Sequence[Ask]) -> Ids:
        answers = [answerer.begin(ask) for ask in asks]
        while answerer.running:
            answerer.step()
        made = []
        for answer in answers:
            ending = answer.pieces[-1]
            assert isinstance(ending, Ending)  # noqa: S101 - nothing runs any more
            made.append(answer.row.ids[-ending.completion_tokens :])
        return made

    return run


def measure(
    ways: dict[str, Way], asks: Sequence[Ask]
) -> tuple[dict[str, float], dict[str, float], dict[str, Ids]]:
    """Median tokens a second and a CPU second by way, and what each said; the ways take turns."""
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    thrifts: dict[str, list[float]] = {name: [] for name in ways}
    said: dict[str, Ids] = {}
    for way in ways.values():
        way([replace(ask, max_tokens=2) for ask in asks])
    for number in range(ROUNDS):
        for name in list(ways)[:: 1 if number % 2 == 0 else -1]:
            began, worked = time.perf_counter(), time.process_time()
            said[name] = ways[name](asks)
            count = sum(map(len, said[name]))
            thrifts[name].append(count / (time.process_time() - worked))
            speeds[name].append(count / (time.perf_counter() - began))
    speed, thrift = (
        {name: statistics.median(values) for name, values in each.items()}
        for each in (speeds, thrifts)
    )
    return speed, thrift, said


def make_adapters(base: bases.Base, folder: Path, count: int) -> list[Path]:
    """Adapters that were never trained, and are not zero."""
    made = []
    for number in range(count):
        torch.manual_seed(number)
        config = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=RANK,
            lora_alpha=4,
            target_modules=sorted(ARCHITECTURES["phi3"].lora_targets),
            init_lora_weights=False,
        )
        model: Any = bases.load(base)
        model.name_or_path = base.name
        made.append(folder / f"a{number}")
        adapters.save(peft.get_peft_model(model, config), made[-1])
    return made


def run(name: str) -> str:
    """The table, with what it was measured on."""
    before = os.getloadavg()[0]
    base = bases.resolve(name, model="")
    with tempfile.TemporaryDirectory() as folder:
        made = make_adapters(base, Path(folder), len(QUESTIONS))
        answerer = Answerer(base)
        bare, adapted = Peer(base, answerer, ()), Peer(base, answerer, made)
        plain = [
            Ask([{"role": "user", "content": words}], max_tokens=TOKENS) for words in QUESTIONS
        ]
        works = {
            "1, the base": (bare, plain[2:3]),
            "8, the base": (bare, plain),
            "8, an adapter each": (
                adapted,
                [replace(ask, adapter=place) for ask, place in zip(plain, made, strict=True)],
            ),
        }
        rows = [_row(work, peer, answerer, asks) for work, (peer, asks) in works.items()]
    return "\n".join(
        [
            f"Tokens a second, medians of {ROUNDS} rounds that take turns; more is better. Greedy, up to"
            f" {TOKENS} tokens an answer, questions of different lengths, in one process and on the same"
            " threads; reading the questions is counted. The machine is shared: CPU time is steadier. Same"
            " ids: answers that are `generate`'s, token for token.",
            "",
            "| requests | generate, one after another | generate, one padded batch | ours"
            " | ours / one after another | ours / padded | by CPU time, one after another | same ids |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}, {base.info.label}, fp32, {torch.get_num_threads()}"
            f" thread(s) of {os.cpu_count()} cores, load before {before:.1f}; torch"
            f" {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__};"
            f" adapters of rank {RANK} on all four projections, the padded batch's by `adapter_names`.",
        ]
    )


def _row(work: str, peer: Peer, answerer: Answerer, asks: Sequence[Ask]) -> str:
    ways = {"one": peer.one_by_one, "padded": peer.padded, "ours": ours(answerer)}
    speed, thrift, said = measure(ways, asks)
    same = sum(a == b for a, b in zip(said["one"], said["ours"], strict=True))
    words = [f"{speed[name]:.1f}" for name in ways]
    words += [f"{speed['ours'] / speed[name]:.1f}" for name in ("one", "padded")]
    words.append(f"{thrift['ours'] / thrift['one']:.1f}")
    print(f"{work}: {' '.join(words)}", flush=True)
    return f"| {work} | {' | '.join(words)} | {same} of {len(asks)} |"


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--base", default="stand-in")
    given = parser.parse_args()
    text = run(given.base)
    report.tell(text, HEADING, given.write)


if __name__ == "__main__":
    main()
