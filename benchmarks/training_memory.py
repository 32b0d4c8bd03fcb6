"""What local runs take of memory, beside what their plans forecast. Random models; each run is a process.

python -m benchmarks.training_memory --write benchmarks/README.md
"""

from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import report
from local_runner import data
from local_runner.models.base import read_config, resolve
from maas_client.plan import DataPlan, Plan, make_plan
from maas_client.spec import dataset
from maas_client.spec.job import FineTuningJob
from maas_client.spec.limits import local_limits
from maas_client.spec.memory import read_size, size_words
from maas_client.spec.rundir import RunDir, write_json

HEADING = "## Memory of a local run, beside its forecast"
_MODEL = "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/15"
MODELS = {
    "T": (64, 160, 2, 4, 2, 263),
    "S": (256, 704, 4, 4, 4, 32_064),
    "M": (768, 2048, 12, 12, 12, 32_064),
    "narrow": (128, 2048, 4, 4, 4, 400),
    "wide": (1024, 2816, 2, 8, 4, 1_000),
}
"""Hidden, inner, layers, heads, groups of keys, vocabulary."""


@dataclass(frozen=True)
class Case:
    """One run."""

    model: str
    longest: int
    """Tokens of the longest row; the others have half of it or more."""
    batch: int
    threads: int
    rank: int = 16
    stored: str = "float32"
    max_memory: str | None = None
    values: dict[str, str] = field(default_factory=dict)

    @property
    def words(self) -> str:
        extra = [f"{key} {value}" for key, value in self.values.items()]
        extra += ["stored in bf16"] if self.stored == "bfloat16" else []
        return ", ".join([f"r {self.rank}", *extra])


CASES = (
    Case("T", 256, 8, 1),
    Case("S", 128, 8, 1, rank=8),
    Case("S", 512, 8, 2),
    Case("S", 1024, 4, 2, rank=64),
    Case("S", 2048, 1, 1),
    Case("S", 768, 4, 2, values={"lora_dropout": "0.1"}),
    Case("M", 256, 4, 1, rank=8),
    Case("M", 512, 4, 2),
    Case("M", 1024, 2, 1, rank=64),
    Case("M", 1024, 2, 2),
    Case("M", 512, 4, 1, stored="bfloat16"),
    Case("wide", 512, 4, 2),
    Case("wide", 2048, 1, 1, rank=8),
    Case("wide", 1024, 2, 2, rank=256),
    Case("S", 2048, 2, 2, max_memory="860MB"),
    Case("M", 1024, 2, 2, max_memory="1900MB"),
    Case("M", 1024, 2, 2, stored="bfloat16", max_memory="1400MB"),
)


def make_model(folder: Path, name: str, stored: str) -> None:
    """A random model; in a process of its own, as it brings torch."""
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    from local_runner.models import tiny

    hidden, inner, layers, heads, groups, vocabulary = MODELS[name]
    folder.mkdir(parents=True)
    tiny.write_tokenizer(folder, tiny.SPECIAL, tiny.ROLES, tiny.TEMPLATE)
    config = Phi3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=257,
        sliding_window=None,
    )
    torch.manual_seed(0)
    Phi3ForCausalLM(config).to(getattr(torch, stored)).save_pretrained(folder)


def make_rows(file: Path, case: Case) -> None:
    """Two steps of rows; a byte is a token."""
    dice = random.Random(0)  # noqa: S311 - no secret
    count = 2 * case.batch
    with file.open("w", encoding="utf-8") as stream:
        for place in range(count):
            # The template takes about ten tokens of a row; a quarter of the rest is trained.
            size = case.longest if place == 0 else dice.randint(case.longest // 2, case.longest)
            asked, said = "q" * ((size - 10) * 3 // 4), "a" * ((size - 10) // 4)
            turns = [
                {"role": "user", "content": asked},
                {"role": "assistant", "content": said},
            ]
            stream.write(json.dumps({"messages": turns}) + "\n")


def plan_of(folder: Path, rows: Path, case: Case) -> Plan:
    """The plan as `maas plan` makes it."""
    base = resolve(str(folder), model="Phi-3-mini-4k-instruct")
    length = data.max_length(read_config(folder), -1)
    tokenizer = data.ChatTokenizer(folder)
    tokens = data.count(data.load_examples(tokenizer, rows, max_length=length), counted_by="bytes")
    values = {
        "max_steps": "2",
        "per_device_train_batch_size": str(case.batch),
        "gradient_accumulation_steps": "1",
        "lora_r": str(case.rank),
        "save_strategy": "disable",
        **case.values,
    }
    job = FineTuningJob.model_validate(
        {
            "type": "finetuning",
            "task": "chat_completion",
            "model_provider": "custom",
            "model": {"path": _MODEL, "type": "mlflow_model"},
            "training_data": {"path": str(rows), "type": "uri_file"},
            "hyperparameters": values,
            "outputs": {"registered_model": {"name": "m", "type": "mlflow_model"}},
        }
    )
    return make_plan(
        job,
        local_limits(job.model),
        training=DataPlan(str(rows), dataset.check(rows, "chat_completion")),
        base=base.info,
        tokens=tokens,
        threads=case.threads,
        max_memory=read_size(case.max_memory) if case.max_memory else None,
    )


def measure(run: RunDir, threads: int) -> tuple[int, float]:
    """Bytes that training takes at most, and its seconds."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "local_runner", "train", str(run.path), "--quiet"]
    began = time.monotonic()
    child = subprocess.Popen(command, env=environment)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{run.path} ended with {child.returncode}")
    return used.ru_maxrss * 1024, time.monotonic() - began


def run_case(home: Path, case: Case, number: int) -> dict[str, Any]:
    folder = home / f"{case.model}-{case.stored}"
    if not folder.exists():
        made = [
            sys.executable,
            "-m",
            "benchmarks.training_memory",
            "--make",
            str(folder),
            case.model,
            case.stored,
        ]
        subprocess.run(made, check=True)
    rows = home / f"rows-{number}.jsonl"
    make_rows(rows, case)
    plan = plan_of(folder, rows, case)
    run = RunDir(home / f"run-{number}")
    write_json(run.plan_file, plan.to_json())
    peak, seconds = measure(run, case.threads)
    forecast = plan.forecast.memory_bytes or 0
    print(
        case, plan.forecast.memory, f"{peak / 1e6:.0f} {forecast / peak - 1:+.1%} {seconds:.0f} s"
    )
    way = plan.thrift.words if plan.thrift else ""
    return {"forecast": forecast, "peak": peak, "way": way}


def table(cases: list[Case], found: list[dict[str, Any]], load: float) -> str:
    lines = [
        "The most that the process has resident, against `maas plan`'s forecast; two steps of LoRA in fp32.",
        "",
        "| model | adapter | longest row | rows a step | threads | bound | forecast | measured | off by |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case, each in zip(cases, found, strict=True):
        off = each["forecast"] / each["peak"] - 1
        bound = f"{case.max_memory}: {each['way'] or 'as ever'}" if case.max_memory else ""
        lines.append(
            f"| {case.model} | {case.words} | {case.longest} | {case.batch} | {case.threads} | {bound} "
            f"| {size_words(each['forecast'])} | {size_words(each['peak'])} | {off:+.0%} |"
        )
    import importlib.metadata

    versions = ", ".join(
        f"{it} {importlib.metadata.version(it)}" for it in ("torch", "transformers")
    )
    worst = max(abs(each["forecast"] / each["peak"] - 1) for each in found)
    sizes = "; ".join(
        f"{name} h{s[0]} i{s[1]} L{s[2]} vocabulary {s[5]:,}" for name, s in MODELS.items()
    )
    lines += [
        "",
        f"Worst: {worst:.0%}. Random models: {sizes}. {time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, "
        f"load before {load:.1f}; Python {platform.python_version()}, {versions}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--make", nargs=3)
    parser.add_argument("--only", help="numbers of cases, with commas")
    options = parser.parse_args()
    if options.make:
        folder, name, stored = options.make
        make_model(Path(folder), name, stored)
        return
    cases = list(CASES)
    if options.only:
        cases = [cases[int(number)] for number in options.only.split(",")]
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as home:
        os.environ["MAAS_HOME"] = home
        found = [run_case(Path(home), case, number) for number, case in enumerate(cases)]
    text = table(cases, found, load)
    report.tell(text, HEADING, options.write)


if __name__ == "__main__":
    main()
