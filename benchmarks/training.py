"""Training on this machine's processor: our trainer, transformers' Trainer and TRL's, side by side.

    python benchmarks/training.py .peers/training/bin/python [--write benchmarks/README.md]

The same models, rows, adapter, batch and step size. Every run is a process of its own; rounds take turns.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report
import training_set

HEADING = "## Training, beside transformers' Trainer and TRL"
HERE = Path(__file__).parent
ROUNDS = 3
SECONDS = {"S": 6.0, "M": 12.0}
"""How long a run goes on after its first step; it ends with the step that passes this."""
THREADS = os.cpu_count() or 1
LIMIT_S = 900.0
"""A run that takes longer has hung."""
ONCE = frozenset({("M", "trl"), ("M", "trl-assistant")})
"""Steps of more than a minute: in the first round only."""

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to train."""

    name: str
    words: str
    knobs: Mapping[str, str] | None = None
    """Ours has these hyperparameters on top; a peer has None."""
    rows: str = "chats.jsonl"
    task: str = "chat_completion"
    processes: int = 1


WAYS = (
    Way("ours", "ours, LoRA", {}),
    Way("ours-dora", "ours, DoRA", {"use_dora": "true"}),
    Way("ours-all", "ours, every token trained", {}, "texts.jsonl", "text_completion"),
    Way("hf", "transformers' Trainer, grouped by length"),
    Way("hf2", "the same as two processes", processes=2),
    Way("trl-packed", "TRL, packed"),
    Way("trl-assistant", "TRL, assistant only"),
    Way("trl", "TRL, its defaults in fp32 (every token)"),
)


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("peer", type=Path, help="the Python of the peers' environment")
    parser.add_argument("--sizes", default="S,M")
    parser.add_argument("--ways", default=",".join(way.name for way in WAYS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    ways = [way for way in WAYS if way.name in given.ways.split(",")]
    before = os.getloadavg()[0]
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), given.peer.absolute())
        for size in given.sizes.split(","):
            found = bench.measure(size, ways, given.rounds)
            tables.append(table(size, ways, found))
            print(tables[-1], flush=True)
    if given.write:
        report.write_section(
            given.write, HEADING, "\n\n".join([INTRODUCTION, *tables, footer(given, before)])
        )


class Bench:
    """The rows and models in a folder, and the runs on them."""

    def __init__(self, folder: Path, peer: Path) -> None:
        self._folder, self._peer, self._runs = folder, peer, 0
        os.environ["MAAS_HOME"] = str(folder / "home")
        training_set.make(folder, rows=2000)

    def measure(self, size: str, ways: Sequence[Way], rounds: int) -> dict[str, list[Result]]:
        """The results of each way, one a round; the products' rate is measured in each round, too."""
        found: dict[str, list[Result]] = {"products": []} | {way.name: [] for way in ways}
        for number in range(rounds):
            found["products"].append(self._ours(size, "products", {}, SECONDS[size] / 4))
            for way in ways[:: 1 if number % 2 == 0 else -1]:
                if number and (size, way.name) in ONCE:
                    continue
                result = self._peers(size, way) if way.knobs is None else self._train(size, way)
                found[way.name].append(result)
                speed = result["tokens"] / result["seconds"]
                thrift = result["tokens"] / result["cpu"]
                print(
                    f"{size} {way.name}: {speed:.0f} tok/s, {thrift:.0f} tok/cpu-s, {result}",
                    flush=True,
                )
        return found

    def _train(self, size: str, way: Way) -> Result:
        run = self._plan(size, way)
        return self._ours(size, way.name, {"run": str(run)}, SECONDS[size])

    def _ours(self, size: str, way: str, more: Mapping[str, Any], seconds: float) -> Result:
        return self._run([sys.executable, HERE / "training_ours.py"], size, way, seconds, more)[0]

    def _peers(self, size: str, way: Way) -> Result:
        command: list[str | Path] = [self._peer]
        if way.processes > 1:
            command += ["-m", "torch.distributed.run", f"--nproc_per_node={way.processes}"]
            command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
        more = {
            "model": str(self._folder / f"{size}-peer"),
            "rows": str(self._folder / way.rows),
            "out": str(self._folder / "out"),
            "threads": max(1, THREADS // way.processes),
        }
        parts = self._run(
            [*command, HERE / "training_peers.py"], size, way.name, SECONDS[size], more
        )
        whole = {name: sum(p[name] for p in parts) for name in ("tokens", "trained", "cpu", "peak")}
        most = {name: max(p[name] for p in parts) for name in ("first", "seconds")}
        return whole | most | {"losses": parts[0]["losses"]}

    def _run(
        self,
        command: Sequence[str | Path],
        size: str,
        way: str,
        seconds: float,
        more: Mapping[str, Any],
    ) -> list[Result]:
        self._runs += 1
        result = self._folder / f"result-{self._runs}-"
        given = {"size": size, "way": way, "seconds": seconds, "threads": THREADS}
        given |= {"result": str(result), "began": time.time(), **more}
        surroundings = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(given["threads"]),
            "TOKENIZERS_PARALLELISM": "true",
        }
        process = subprocess.run(
            [*command, json.dumps(given)],
            env=surroundings,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        found = sorted(self._folder.glob(f"{result.name}*"))
        if process.returncode or not found:
            raise SystemExit(f"{way} failed on {size}:\n{process.stdout}\n{process.stderr}")
        return [json.loads(file.read_text()) for file in found]

    def _plan(self, size: str, way: Way) -> Path:
        """A run directory, as `maas run` makes it."""
        from local_runner.models.base import resolve
        from maas_client.plan import DataPlan, make_plan
        from maas_client.spec import dataset
        from maas_client.spec.job import FineTuningJob
        from maas_client.spec.limits import local_limits
        from maas_client.spec.rundir import RunDir, write_json

        rows = self._folder / way.rows
        knobs = {"lora_r": "16", "lora_alpha": "32", "learning_rate": "0.0002"}
        knobs |= {"lr_scheduler_type": "constant", "per_device_train_batch_size": "8"}
        knobs |= {"logging_steps": "1", "save_strategy": "disable", **(way.knobs or {})}
        model = "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/15"
        job = FineTuningJob.model_validate(
            {
                "type": "finetuning",
                "task": way.task,
                "model_provider": "custom",
                "model": {"path": model, "type": "mlflow_model"},
                "training_data": {"path": str(rows), "type": "uri_file"},
                "hyperparameters": knobs,
                "outputs": {"registered_model": {"name": "m", "type": "mlflow_model"}},
            }
        )
        plan = make_plan(
            job,
            local_limits(job.model),
            training=DataPlan(str(rows), dataset.check(rows, way.task)),
            base=resolve(str(self._folder / size), model=job.model.asset_name).info,
            threads=THREADS,
        )
        run = RunDir(self._folder / f"run-{self._runs}")
        write_json(run.plan_file, plan.to_json())
        return run.path


INTRODUCTION = f"""\
Medians of {ROUNDS} rounds that take turns, each run a process of its own; ours through the whole runner, with
its events and files. LoRA of rank 16 on all four projections, eight rows a step, fp32, 2,000 chats of our own
making (the standard library's sentences, about 322 tokens, a quarter of them the assistant's). Useful tokens:
those of the rows, without padding. Loss on the assistant's tokens, where the row does not say otherwise. GEMM
rate: operations of the forward and input-gradient products that were done, nothing else, as a share of what
the same products reach alone in the same round. The models' weights are random: only speed is measured."""


def table(size: str, ways: Sequence[Way], found: Mapping[str, Sequence[Result]]) -> str:
    hidden, _, layers, _ = training_set.SIZES[size]
    rate = statistics.median(result["rate"] for result in found["products"])
    lines = [
        f"**{size}**: hidden {hidden}, {layers} layers; the products alone reach {rate / 1e9:.0f} GFLOP/s.",
        "",
        "| way | useful tok/s | tok per CPU second | ours / it, wall | ours / it, CPU"
        " | peak MiB | end of first step, s | GEMM rate | rounds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    ours = found.get("ours") or found[ways[0].name]
    speed, thrift = _median(ours, "seconds"), _median(ours, "cpu")
    for way in ways:
        results = found[way.name]
        wall, cpu = _median(results, "seconds"), _median(results, "cpu")
        peak, first = (statistics.median(r[name] for r in results) for name in ("peak", "first"))
        shares = [
            result["flops"] / result["seconds"] / alone["rate"]
            for result, alone in zip(results, found["products"], strict=False)
            if "flops" in result
        ]
        share = f"{statistics.median(shares):.0%}" if shares else ""
        lines.append(
            f"| {way.words} | {wall:,.0f} | {cpu:,.0f} | {speed / wall:.2f} | {thrift / cpu:.2f}"
            f" | {peak:,.0f} | {first:.1f} | {share} | {len(results)} |"
        )
    return "\n".join(lines)


def _median(results: Sequence[Result], of: str) -> float:
    """Useful tokens a second of the wall clock, or of the processor."""
    return statistics.median(result["tokens"] / result[of] for result in results)


def footer(given: argparse.Namespace, before: float) -> str:
    names = ("torch", "transformers", "peft", "trl", "accelerate", "datasets")
    script = f"import importlib.metadata as m; print(*(f'{{n}} {{m.version(n)}}' for n in {names}), sep=', ')"
    versions = subprocess.run(
        [given.peer, "-c", script], capture_output=True, text=True, check=True
    ).stdout.strip()
    return (
        f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}, {THREADS} cores ({_processor()}), load before {before:.1f},"
        f" after {os.getloadavg()[0]:.1f}; {versions}. Trainer and TRL run with bf16 off and no gradient"
        " checkpointing, save for TRL's defaults; two processes are torch.distributed's, over gloo."
    )


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


if __name__ == "__main__":
    main()
