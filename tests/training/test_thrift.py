"""A run that spares memory learns the same; one that runs out says what would fit, and goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import training_memory
from local_runner import train as recipe
from local_runner.flat.opening import open_learner
from local_runner.flat.projections import Merged
from local_runner.flat.streamed import Streamed
from local_runner.memory import is_out_of_memory
from local_runner.stopping import in_our_words
from local_runner.train import train
from maas_client.errors import RunnerError
from maas_client.jobs import JobStatus
from maas_client.plan import plan_from_json
from maas_client.spec.memory import Thrift
from maas_client.spec.rundir import RunDir, read_json, write_json
from tests.training.conftest import MakeRun
from tests.training.test_flat import make_model, make_rows

LORA: dict[str, Any] = {}


def gradients(thrift: Thrift, model: Any, *, threads: int = 2) -> tuple[float, list[torch.Tensor]]:
    rows = make_rows(12)
    learner = open_learner(model, threads=threads, thrift=thrift)
    assert learner is not None
    loss, _ = learner.learn([rows], sum(sum(row.trained[1:]) for row in rows))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return loss, [weight.grad.clone() for weight in weights if weight.grad is not None]


@pytest.mark.parametrize(
    "thrift", [Thrift(1, gradient_checkpointing=True), Thrift(1, streamed=True)]
)
def test_computing_again_gives_the_same_bytes(thrift: Thrift) -> None:
    model = make_model(adapter=LORA)
    loss, grads = gradients(Thrift(1), model)
    spared_loss, spared = gradients(thrift, model)
    assert spared_loss == loss
    assert all(torch.equal(a, b) for a, b in zip(grads, spared, strict=True))
    assert len(spared) == 16


@pytest.mark.parametrize(
    "thrift",
    [Thrift(1, 0), Thrift(2, 20), Thrift(1, 0, gradient_checkpointing=True, streamed=True)],
)
def test_smaller_parts_give_the_same_losses(thrift: Thrift) -> None:
    model = make_model(adapter=LORA)
    loss, grads = gradients(Thrift(2), model)
    spared_loss, spared = gradients(thrift, model)
    assert spared_loss == pytest.approx(loss, rel=1e-5)
    for one, other in zip(grads, spared, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_matrix_streamed_from_16_bits_is_the_one_that_is_merged_in_32() -> None:
    dice = torch.Generator().manual_seed(3)
    base = torch.randn(24, 16, generator=dice).bfloat16()
    a, b = (torch.randn(*s, generator=dice).requires_grad_() for s in ((4, 16), (24, 4)))
    x = torch.randn(5, 16, generator=dice)
    merged = Merged(base.float(), a, b, scale=0.5)
    merged.refresh()
    made = [each(x, None) for each in (merged, Streamed(base, a, b, scale=0.5))]
    assert torch.equal(*made)
    grads = [torch.autograd.grad(out.square().sum(), (a, b)) for out in made]
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def spare(run: RunDir, thrift: Thrift) -> None:
    write_json(run.plan_file, read_json(run.plan_file) | {"thrift": asdict(thrift)})


def test_a_run_that_streams_and_computes_again_leaves_the_same_adapter(
    make_run: MakeRun, adapter_bytes: Callable[[RunDir], tuple[bytes, bytes]]
) -> None:
    usual, sparing = make_run("usual", max_steps=3), make_run("sparing", max_steps=3)
    spare(sparing, Thrift(1, gradient_checkpointing=True, streamed=True))
    train(usual)
    train(sparing)
    assert adapter_bytes(usual) == adapter_bytes(sparing)


def test_a_run_out_of_memory_says_what_fits_and_goes_on_with_it(
    make_run: MakeRun,
    adapter_bytes: Callable[[RunDir], tuple[bytes, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = make_run("whole", max_steps=4, lora_dropout=0.1)
    train(whole)
    run = make_run("run", max_steps=4, lora_dropout=0.1)
    update, calls = recipe.update, []

    def greedy(*given: Any, **more: Any) -> Any:
        calls.append(given)
        if len(calls) == 3:
            torch.rand(1)  # as a step does that has begun
            torch.empty(2**50)  # the allocator's own words
        return update(*given, **more)

    monkeypatch.setattr(recipe, "update", greedy)
    with pytest.raises(RunnerError, match="not enough memory") as caught:
        train(run)
    assert "max_seq_length" in caught.value.hint
    status = run.read_status()
    assert status is not None
    assert status.status is JobStatus.FAILED
    assert run.checkpoint_steps()[-1] == 2, "the steps that were done are not lost"
    assert train(run).status is JobStatus.SUCCEEDED
    assert read_json(run.manifest_file)["resumed_at_step"] == 2
    assert adapter_bytes(run) == adapter_bytes(whole)


def test_what_the_system_says_of_memory_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    told = in_our_words(MemoryError(), smaller="--max-memory 2.10GB")
    assert isinstance(told, RunnerError)
    assert "--max-memory 2.10GB" in told.hint


@pytest.mark.parametrize(
    "case",
    [
        training_memory.Case("T", 256, 4, 1),
        training_memory.Case("narrow", 1024, 2, 1, rank=8),
    ],
    ids=lambda case: case.model,
)
def test_the_forecast_is_within_15_percent_of_the_peak(
    case: training_memory.Case, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    training_memory.make_model(folder, case.model, case.stored)
    rows = tmp_path / "rows.jsonl"
    training_memory.make_rows(rows, case)
    plan = training_memory.plan_of(folder, rows, case)
    run = RunDir(tmp_path / "run")
    write_json(run.plan_file, plan.to_json())
    peak = peak_of(run)
    assert plan.forecast.memory_bytes == pytest.approx(peak, rel=0.15)
    assert plan_from_json(read_json(run.plan_file)).forecast == plan.forecast


_TRAIN = """
import pathlib, sys
from local_runner.train import train
from maas_client.spec.rundir import RunDir
train(RunDir(pathlib.Path(sys.argv[1])))
status = pathlib.Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def peak_of(run: RunDir) -> int:
    """Bytes, as the child itself reads them: what `wait4` says begins with its parent's."""
    done = subprocess.run(
        [sys.executable, "-c", _TRAIN, str(run.path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1]) * 1024
