"""Steps of LoRA at Phi-3-mini's true size: 3.8 billion random weights in bf16, streamed from the disk.

    python -m benchmarks.real_size --folder /tmp/phi-3-mini-random --write benchmarks/README.md

The folder takes 7.7 GB; it is kept, and used again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import report, training_memory
from maas_client.spec.memory import size_words
from maas_client.spec.rundir import RunDir, write_json

HEADING = "## LoRA at Phi-3-mini's size"
HIDDEN, INNER, LAYERS, HEADS, VOCABULARY = 3072, 8192, 32, 32, 32_064
NEEDED = 8 * 10**9
_A_FILE = 4
"""Layers in a file of the checkpoint."""


def make(folder: Path) -> None:
    """A random checkpoint; in a process of its own, as it brings torch."""
    import torch
    from safetensors.torch import save_file
    from transformers import Phi3Config

    from local_runner.models import tiny

    staged = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    tiny.write_tokenizer(staged, tiny.SPECIAL, tiny.ROLES, tiny.TEMPLATE)
    Phi3Config(
        architectures=["Phi3ForCausalLM"],
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=257,
        sliding_window=2047,
        dtype="bfloat16",
    ).save_pretrained(staged)
    dice = torch.Generator().manual_seed(0)
    placed: dict[str, str] = {}
    for number, shapes in enumerate(parts()):
        tensors = {
            name: torch.ones(shape, dtype=torch.bfloat16)
            if len(shape) == 1
            else torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=dice)
            for name, shape in shapes.items()
        }
        file = f"model-{number + 1:05}.safetensors"
        save_file(tensors, staged / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": placed}
    (staged / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    staged.rename(folder)


def parts() -> Iterator[dict[str, tuple[int, ...]]]:
    """The tensors of each file."""
    yield {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }
    for first in range(0, LAYERS, _A_FILE):
        yield {
            f"model.layers.{layer}.{name}.weight": shape
            for layer in range(first, first + _A_FILE)
            for name, shape in (
                ("self_attn.qkv_proj", (3 * HIDDEN, HIDDEN)),
                ("self_attn.o_proj", (HIDDEN, HIDDEN)),
                ("mlp.gate_up_proj", (2 * INNER, HIDDEN)),
                ("mlp.down_proj", (HIDDEN, INNER)),
                ("input_layernorm", (HIDDEN,)),
                ("post_attention_layernorm", (HIDDEN,)),
            )
        }


def train(run: RunDir, threads: int) -> dict[str, Any]:
    """Train, and watch: the most that was resident, of it the process's own, and seconds of each step."""
    command = [sys.executable, "-m", "local_runner", "train", str(run.path), "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    child = subprocess.Popen(command, env=environment)
    own = whole = 0
    while child.poll() is None:
        own, whole = (
            max(own, _resident(child.pid, "RssAnon")),
            _resident(child.pid, "VmHWM") or whole,
        )
        time.sleep(0.2)
    if child.returncode:
        raise SystemExit(f"{run.path} ended with {child.returncode}")
    # All is loaded when the rows are told of.
    marks = [event for event in run.events() if "loss" in event.data or "tokens" in event.data]
    seconds = [after.at - before.at for before, after in pairwise(marks)]
    return {"own": own, "whole": whole, "seconds": seconds, "loss": marks[-1].data["loss"]}


def _resident(process: int, what: str) -> int:
    """Bytes; 0 where the process is gone."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    lines = (line.split() for line in status.splitlines() if line.startswith(f"{what}:"))
    return next((int(words[1]) * 1024 for words in lines), 0)


def section(found: dict[str, Any], plan: Any, load: float) -> str:
    import importlib.metadata

    steps = ", ".join(f"{seconds:.0f}" for seconds in found["seconds"])
    return "\n".join(
        [
            "Random weights of Phi-3-mini's shape (3.82 billion, bf16, 7.64 GB in nine files), `maas run`'s "
            "own trainer with `--max-memory 12GB`: weights stay in their files, and each matrix is made in "
            "fp32, with its adapter, as it is used. LoRA r 16 on all four projections; one row of 64 tokens "
            "a step. A longer row takes more time in its products only: the matrices are made once a pass.",
            "",
            "| seconds of each step | peak resident | of it the process's own | forecast |",
            "|---|---|---|---|",
            f"| {steps} | {size_words(found['whole'])} | {size_words(found['own'])} "
            f"| {size_words(plan.forecast.memory_bytes)} |",
            "",
            "What is not the process's own is the checkpoint, mapped: the system takes it back where memory "
            "is short, and reads it again. Not measured: QLoRA, and Phi-3-small, at their true sizes. "
            f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, shared, load before {load:.1f}; "
            f"torch {importlib.metadata.version('torch')}.",
            "",
        ]
    )


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--make", action="store_true", help="only write the checkpoint")
    options = parser.parse_args()
    folder: Path = options.folder
    if options.make:
        make(folder)
        return
    if not folder.exists():
        if shutil.disk_usage(folder.parent).free < 2 * NEEDED:
            raise SystemExit(f"{folder.parent} has less than {size_words(2 * NEEDED)} left")
        subprocess.run(
            [sys.executable, "-m", "benchmarks.real_size", "--make", "--folder", str(folder)],
            check=True,
        )
    load = os.getloadavg()[0]
    threads = len(os.sched_getaffinity(0))
    case = training_memory.Case(
        "mini", 64, 1, threads, max_memory="12GB", values={"logging_steps": "1"}
    )
    with tempfile.TemporaryDirectory() as home:
        os.environ["MAAS_HOME"] = home
        rows = Path(home) / "rows.jsonl"
        training_memory.make_rows(rows, case)
        plan = training_memory.plan_of(folder, rows, case)
        run = RunDir(Path(home) / "run")
        write_json(run.plan_file, plan.to_json())
        print(plan.forecast, plan.thrift)
        found = train(run, threads)
    text = section(found, plan, load)
    print(found, text, sep="\n")
    if options.write:
        report.write_section(options.write, HEADING, text)


if __name__ == "__main__":
    main()
