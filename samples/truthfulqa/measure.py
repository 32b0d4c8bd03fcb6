"""TruthfulQA before and after: tunes on some questions, measures MC1 and MC2 on others, over several seeds.

    python samples/truthfulqa/measure.py TruthfulQA.csv --base stand-in --seeds 0 1 2 --write RESULTS.md

The CSV is the authors'; it is not part of this project. With --overlap, the questions that are measured
are those that were trained on: what a score is worth when the two are not kept apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import maas_client as maas
from maas_client.settings import LocalSettings
from maas_client.spec.dataset import write_jsonl
from maas_client.spec.loading import dump_job, load_job
from maas_client.spec.truthfulqa import chat_row, read_questions, split, write_questions

JOB = Path(__file__).parent / "job.yaml"
Found = Mapping[str, Any]


def main() -> None:
    given = _arguments()
    found = [
        measure(given, seed, overlap=overlap)
        for overlap, seeds in ((False, given.seeds), (True, given.overlap))
        for seed in seeds
    ]
    text = report(found, given)
    print(text)
    if given.write:
        given.write.write_text(text, encoding="utf-8")


def measure(given: argparse.Namespace, seed: int, *, overlap: bool) -> Found:
    """One split, one run, and its MC1 and MC2 before and after; found again where it was measured already."""
    folder = given.out / f"{'overlap' if overlap else 'held-out'}-{seed}"
    if (folder / "found.json").exists():
        found: Found = json.loads((folder / "found.json").read_text())
        return found
    train, held_out = split(read_questions(given.csv), held_out=given.held_out, seed=seed)
    if overlap:
        train = held_out
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(map(chat_row, train), folder / "train.jsonl")
    write_questions(held_out, folder / "measured.csv")
    begun = time.monotonic()
    run = maas.run(_job(folder, given, seed), _here(folder), base=given.base)
    trained = time.monotonic() - begun
    result = maas.evaluate(
        run.path, folder / "measured.csv", benchmark="truthfulqa", prompt=given.prompt
    )
    before, after = (each["metrics"] for each in result["results"])
    steps = [metric for metric in run.metrics() if "loss" in metric]
    measured = {
        "seed": seed,
        "overlap": overlap,
        "trained": len(train),
        "measured": len(held_out),
        "shared": len({each.key for each in train} & {each.key for each in held_out}),
        "steps": steps[-1]["max_steps"],
        "base": result["base"],
        "asked": result["prompt_format"],
        "before": before,
        "after": after,
        "seconds": {
            "training": round(trained),
            "measuring": round(time.monotonic() - begun - trained),
        },
    }
    (folder / "found.json").write_text(json.dumps(measured, indent=2))
    print(json.dumps(measured), flush=True)
    return measured


def _job(folder: Path, given: argparse.Namespace, seed: int) -> Path:
    """The sample's job with this run's rows and seed."""
    job = load_job(JOB)
    knobs = {**job.hyperparameters, "seed": str(seed)}
    if given.steps:
        knobs["max_steps"] = str(given.steps)
    file = folder / "job.yaml"
    file.write_text(dump_job(job.model_copy(update={"hyperparameters": knobs, "name": "run"})))
    return file


def _here(folder: Path) -> maas.Target:
    return maas.open_target(LocalSettings(runs=folder / "runs"))


def report(found: Sequence[Found], given: argparse.Namespace) -> str:
    """All of it as Markdown."""
    batch = int(load_job(JOB).hyperparameters["per_device_train_batch_size"] or 1)
    rows = [
        f"| {'the same questions' if each['overlap'] else 'other questions'} | {each['seed']} | "
        f"{each['trained']} | {each['steps']} | {each['steps'] * batch} | "
        f"{each['measured']} | {each['shared']} | "
        + " | ".join(
            f"{100 * each[when][key]:.1f}" for key in ("mc1", "mc2") for when in ("before", "after")
        )
        + " |"
        for each in found
    ]
    kept_apart = [each for each in found if not each["overlap"]]
    lines = [
        "# TruthfulQA, before and after",
        "",
        f"On {found[0]['base']}; asked through {found[0]['asked']}. In percent. `shared`: questions that are "
        "both trained on and measured.",
        "",
        "| measured on | seed | to train on | steps | rows seen, at most | measured | shared "
        "| MC1 before | after | MC2 before | after |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]
    if len(kept_apart) > 1:
        lines += [
            f"Questions that were never trained on, mean of {len(kept_apart)} seeds and its standard "
            f"deviation: {_spread(kept_apart, 'mc1')}; {_spread(kept_apart, 'mc2')}.",
            "",
        ]
    spent = sum(sum(each["seconds"].values()) for each in found)
    lines += [f"{given.note + '; ' if given.note else ''}{spent} s in all.", ""]
    return "\n".join(lines)


def _spread(found: Sequence[Found], key: str) -> str:
    def said(values: Sequence[float]) -> str:
        return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}"

    before, after = ([each[when][key] for each in found] for when in ("before", "after"))
    change = [b - a for a, b in zip(before, after, strict=True)]
    return f"{key.upper()} {said(before)} before, {said(after)} after (change {said(change)})"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("csv", type=Path, help="the authors' TruthfulQA.csv")
    parser.add_argument("--base", help="as for maas run")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--held-out", type=int, default=100, help="questions to measure on")
    parser.add_argument("--steps", type=int, help="optimizer steps; without it, one epoch")
    parser.add_argument(
        "--overlap", type=int, nargs="*", default=[], help="seeds of runs on the measured questions"
    )
    parser.add_argument("--prompt", choices=("chat", "qa"), default="chat")
    parser.add_argument("--out", type=Path, default=Path("runs") / "truthfulqa")
    parser.add_argument("--write", type=Path, help="a Markdown file for the table")
    parser.add_argument("--note", default="", help="the day and the machine, for the table's foot")
    return parser.parse_args()


if __name__ == "__main__":
    main()
