"""The recipe, top to bottom, one function an act.

    open -> resume or start -> step, step, … -> finish

A step is one optimizer update. Everything that decides a step's result is in the plan and in the
step's number, and a checkpoint holds the rest: a run that is interrupted and goes on gives the same
bytes as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from local_runner import adapters, checkpoints, compared, inputs, manifest
from local_runner.data import ChatTokenizer, Example, load_examples, max_length
from local_runner.learning import Learner, open_learner
from local_runner.models import base as bases
from local_runner.models import tokenizers
from local_runner.stopping import Signals, StopRequested, in_our_words, is_out_of_memory, signals
from local_runner.update import make_optimizer, micro_batches, rates, steps_per_epoch, update
from maas_client.errors import MaasError
from maas_client.jobs import Event, JobStatus
from maas_client.plan import Plan, count_steps
from maas_client.spec.forecast import thriftier
from maas_client.spec.rundir import (
    KEPT_EPOCHS,
    EventWriter,
    RunDir,
    RunStatus,
)

if TYPE_CHECKING:
    from peft import PeftModel

OnEvent = Callable[[Event], None]
Tell = Callable[..., None]

_CRASH_CHECKPOINT_SECONDS = 30.0
"""How much work a killed run may lose. Writing a checkpoint takes about a tenth of a second."""


@dataclass
class _Run:
    """What a training run holds while it goes on."""

    dir: RunDir
    plan: Plan
    base: bases.Base
    model: PeftModel
    learner: Learner
    optimizer: torch.optim.Optimizer
    rate: Callable[[int], float]
    """Step, counted from 0 -> learning rate."""
    rows: list[Example]
    held_out: list[Example]
    tell: Tell
    keep_epochs: bool = False
    """Whether each epoch's adapter is kept, and how often the model is right is told."""
    step: int = 0
    best: float | None = None
    """The lowest validation loss so far."""
    worse: int = 0
    """Evaluations in a row without a gain, for early stopping."""
    losses: list[float] = field(default_factory=list)
    """Of the steps since the last metric."""
    tokens: int = 0
    """Tokens seen since the last metric."""
    norm: float = 0.0
    """Of the last gradient, before clipping."""
    accuracy: float = 0.0
    """Of the last step."""
    clock: float = 0.0
    """When the last metric was written."""
    saved_at: float = 0.0

    @property
    def values(self) -> dict[str, Any]:
        return self.plan.values

    @property
    def steps(self) -> int:
        return count_steps(len(self.rows), self.values)

    @property
    def per_epoch(self) -> int:
        return steps_per_epoch(len(self.rows), self.values)

    @property
    def epoch(self) -> float:
        return round(self.step / self.per_epoch, 4)

    @property
    def is_stale(self) -> bool:
        """Whether early stopping is asked for and due."""
        patience = int(self.values["early_stopping_patience"])
        return bool(self.values["apply_early_stopping"]) and self.worse >= patience

    @property
    def is_over(self) -> bool:
        return self.step >= self.steps or self.is_stale


def train(
    run_dir: RunDir, *, keep_epochs: bool = False, on_event: OnEvent = lambda _: None
) -> RunStatus:
    """Train the run's plan, or go on with it; returns the status it ended with.

    A run that has succeeded is not trained again: its status is returned. `keep_epochs` leaves an
    adapter of each of the last epochs beside the last one, which stays the same.

    Raises:
        RunDirError: another process trains it, or its inputs are not those of the plan.
        MaasError: what made the run fail, after `status.json` says so.
    """
    with run_dir.locked():
        before = run_dir.read_status()
        if before is not None and before.status is JobStatus.SUCCEEDED:
            return before
        plan = inputs.read_plan(run_dir)
        if before is not None and run_dir.manifest_file.exists():
            return _say_success(run_dir, plan, before)
        started = before.started_at if before and before.started_at else time.time()
        status = RunStatus(JobStatus.RUNNING, started_at=started, base=_label(plan))
        run_dir.write_status(status)
        writer = EventWriter(run_dir)

        def tell(kind: Any, message: str, data: dict[str, Any] | None = None) -> None:
            on_event(writer.write(kind, message, data))

        try:
            with signals() as caught, _settings(plan):
                _train(run_dir, plan, tell, caught, keep_epochs=keep_epochs)
            status = replace(status, status=JobStatus.SUCCEEDED)
        except StopRequested as stop:
            status = replace(status, status=JobStatus.CANCELLED, error=str(stop))
        except Exception as error:
            smaller = thriftier(plan.values, plan.base, plan.tokens, plan.threads, plan.thrift)
            told = in_our_words(error, smaller=smaller)
            words = str(told) if isinstance(told, MaasError) else f"{type(told).__name__}: {told}"
            status = replace(status, status=JobStatus.FAILED, error=words)
            if told is error:
                raise
            raise told from error
        finally:
            status = replace(status, ended_at=time.time())
            _close(run_dir, status, tell)
        if status.status is JobStatus.SUCCEEDED:
            checkpoints.finish(
                run_dir
            )  # only now: a run killed before its last word goes on from them
        return status


def _say_success(run_dir: RunDir, plan: Plan, before: RunStatus) -> RunStatus:
    """A run was killed between its last file and its last word: the work is done, and not done again."""
    status = replace(before, status=JobStatus.SUCCEEDED, error=None, base=_label(plan))
    run_dir.write_status(replace(status, ended_at=time.time()))
    checkpoints.finish(run_dir)
    return status


def _train(run_dir: RunDir, plan: Plan, tell: Tell, caught: Signals, *, keep_epochs: bool) -> None:
    began = time.monotonic()
    tell("status", f"running on {_label(plan)}", {"status": "running"})
    run = _open(run_dir, plan, tell)
    run.keep_epochs = keep_epochs
    resumed_at = _resume_or_start(run)
    run.clock = run.saved_at = time.monotonic()
    _stop_if_asked(run, caught)
    while not run.is_over:
        _step(run)
        _report(run)
        _evaluate_if_due(run)
        _save_if_due(run)
        _keep_epoch_if_due(run)
        _stop_if_asked(run, caught)
    _finish(run, seconds=time.monotonic() - began, resumed_at=resumed_at)


def _open(run_dir: RunDir, plan: Plan, tell: Tell) -> _Run:
    """Check the inputs against the plan, and load everything."""
    base = bases.resolve(plan.base.source if plan.base else None, model=plan.job.model.asset_name)
    inputs.check_inputs(plan, base)
    checkpoints.sweep(run_dir)
    system_turns: Any = plan.values.get("system_turns") or "refuse"
    tokenizer = ChatTokenizer(base.folder, model=base.model, system_turns=system_turns)
    length = max_length(bases.read_config(base.folder), int(plan.values["max_seq_length"] or -1))
    rows = load_examples(tokenizer, Path(plan.training.path), max_length=length, task=plan.job.task)
    held_out = (
        load_examples(tokenizer, Path(plan.validation.path), max_length=length, task=plan.job.task)
        if plan.validation
        else []
    )
    steps = count_steps(len(rows), plan.values)
    rate = rates(plan, steps)
    model = adapters.attach(bases.load(base, dtype=bases.held_in(plan)), plan, name=base.name)
    tokens = sum(len(row.ids) for row in rows)
    words = f"{len(rows)} rows, {tokens:,} tokens, {len(held_out)} held out, {steps} steps"
    tell("log", words, {"tokens": tokens})
    for remark in compared.remarks(base, tokenizer):
        tell("log", remark)
    if plan.values["apply_early_stopping"] and not held_out:
        tell("log", "apply_early_stopping does nothing: there are no validation rows")
    return _Run(
        dir=run_dir,
        plan=plan,
        base=base,
        model=model,
        learner=open_learner(model, pad_id=tokenizer.eos_id, thrift=plan.thrift),
        optimizer=make_optimizer(model, plan),
        rate=rate,
        rows=rows,
        held_out=held_out,
        tell=tell,
    )


def _resume_or_start(run: _Run) -> int | None:
    """Go on from the last checkpoint; returns its step, or None where there is none."""
    steps = run.dir.checkpoint_steps()
    inputs.forget_metrics(run.dir, after=steps[-1] if steps else -1)
    if steps:
        state = checkpoints.load(run.dir.checkpoint(steps[-1]), run.model, run.optimizer)
        run.step, run.best, run.worse = state.step, state.best, state.worse
        run.losses, run.tokens = list(state.losses), state.tokens
        run.tell("log", f"resumed at step {run.step} of {run.steps}")
        return run.step
    torch.manual_seed(run.plan.seed)
    if run.held_out and run.values["evaluation_strategy"] != "disable":
        _evaluate(run)  # before and after come from the same code
    return None


def _step(run: _Run) -> None:
    dice = torch.get_rng_state()
    try:
        done = update(
            run.learner,
            run.optimizer,
            micro_batches(run.rows, run.plan, run.step),
            rate=run.rate(run.step),
            ceiling=float(run.values["max_grad_norm"]),
        )
    except (MemoryError, RuntimeError) as error:
        if run.step and is_out_of_memory(error):
            torch.set_rng_state(dice)  # as if the step had not begun
            with suppress(MemoryError, RuntimeError):  # else there is an older checkpoint
                _save(run, asked_for=False)
        raise
    run.step += 1
    run.losses.append(done.loss)
    run.tokens += done.tokens
    run.norm, run.accuracy = done.norm, done.accuracy


def _report(run: _Run) -> None:
    every = int(run.values["logging_steps"])
    if run.step % every and run.step not in {1, run.steps}:
        return
    now = time.monotonic()
    spent = max(now - run.clock, 1e-9)
    rate, left = run.tokens / spent, spent / len(run.losses) * (run.steps - run.step)
    data = {
        "step": run.step,
        "max_steps": run.steps,
        "epoch": run.epoch,
        "loss": sum(run.losses) / len(run.losses),
        "grad_norm": run.norm,
        "learning_rate": run.rate(run.step - 1),
        "tokens_per_second": round(rate, 1),
        "seconds_left": round(left, 1),
    }
    if run.keep_epochs:
        data["token_accuracy"] = run.accuracy
    words = f"step {run.step}/{run.steps}  loss {data['loss']:.4f}  {rate:,.0f} tokens/s"
    run.tell("metric", words, data)
    run.losses.clear()
    run.tokens, run.clock = 0, now


def _evaluate_if_due(run: _Run) -> None:
    strategy = run.values["evaluation_strategy"]
    if not run.held_out or strategy == "disable":
        return
    every = run.per_epoch if strategy == "epoch" else int(run.values["eval_steps"])
    if run.step % every and run.step != run.steps:
        return
    start = time.monotonic()
    loss = _evaluate(run)
    run.clock += time.monotonic() - start  # evaluating is not training: keep it out of tokens/s
    if run.best is None or loss < run.best - float(run.values["early_stopping_threshold"]):
        run.best, run.worse = loss, 0
    else:
        run.worse += 1


def _evaluate(run: _Run) -> float:
    batch = int(run.values["per_device_eval_batch_size"])
    loss, accuracy = run.learner.measure(run.held_out, batch=batch)
    words = f"step {run.step}/{run.steps}  validation loss {loss:.4f}"
    data = {"step": run.step, "max_steps": run.steps, "epoch": run.epoch, "eval_loss": loss}
    if run.keep_epochs:
        data["eval_token_accuracy"] = accuracy
    run.tell("metric", words, data)
    return loss


def _save_if_due(run: _Run) -> None:
    strategy = run.values["save_strategy"]
    every = {"epoch": run.per_epoch, "steps": int(run.values["save_steps"])}.get(strategy, 0)
    if every and (run.step % every == 0 or run.step == run.steps):
        _save(run, asked_for=True)
    elif not run.is_over and time.monotonic() - run.saved_at > _CRASH_CHECKPOINT_SECONDS:
        _save(run, asked_for=False)


def _keep_epoch_if_due(run: _Run) -> None:
    if run.keep_epochs and run.step % run.per_epoch == 0:
        epoch = run.step // run.per_epoch
        checkpoints.save_epoch(run.dir, epoch, run.step, run.model, keep=KEPT_EPOCHS)


def _save(run: _Run, *, asked_for: bool) -> None:
    losses = tuple(run.losses)
    state = checkpoints.State(run.step, run.best, run.worse, losses, run.tokens, asked_for)
    checkpoints.save(run.dir, state, run.model, run.optimizer)
    checkpoints.prune(run.dir, keep=int(run.values["save_total_limit"]))
    run.saved_at = time.monotonic()


def _stop_if_asked(run: _Run, caught: Signals) -> None:
    if run.is_over:
        return  # what is left is to write it down
    if run.dir.cancel_file.exists():
        raise StopRequested(f"cancelled at step {run.step} of {run.steps}")
    if caught.number:
        if run.step:
            _save(run, asked_for=False)
        raise StopRequested(
            f"interrupted at step {run.step} of {run.steps}; run it again to resume"
        )


def _finish(run: _Run, *, seconds: float, resumed_at: int | None) -> None:
    """Write what the run was for, whole, and the digests of it all."""
    if run.step < run.steps:
        run.tell("log", f"stopped early at step {run.step}: no gain in {run.worse} evaluations")
    staged = run.dir.path / "adapter.new"
    checkpoints.clear(staged)
    adapters.save(run.model, staged)
    checkpoints.publish(staged, run.dir.adapter)
    run.tell("log", f"adapter written to {run.dir.adapter.name}/")
    if run.values.get("merge_lora_weights"):
        _merge(run)
    took = {"steps": run.step, "seconds": round(seconds, 1), "resumed_at_step": resumed_at}
    manifest.write(run.dir, run.plan, run.base.info, took=took)


def _merge(run: _Run) -> None:
    staged = run.dir.path / "merged.new"
    checkpoints.clear(staged)
    merged = run.model.merge_and_unload()
    merged.save_pretrained(staged)
    whole = tokenizers.whole(run.base.folder, model=run.base.model)
    for name in bases.TOKENIZER_FILES:
        if (source := whole / name).exists():
            (staged / name).write_bytes(source.read_bytes())
    checkpoints.publish(staged, run.dir.merged)
    run.tell("log", f"merged model written to {run.dir.merged.name}/")


@contextmanager
def _settings(plan: Plan) -> Iterator[None]:
    """torch's own settings that the result depends on."""
    torch.set_num_threads(plan.threads or 1)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(mode=bool(plan.values.get("enable_full_determinism")))
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=before)


def _close(run_dir: RunDir, status: RunStatus, tell: Tell) -> None:
    """Say how it ended: the event first, so that who sees the status has all events."""
    words = f"{status.status}: {status.error}" if status.error else str(status.status)
    acts: list[Callable[[], None]] = [
        lambda: tell("status", words, {"status": str(status.status)}),
        lambda: run_dir.write_status(status),
    ]
    for act in acts:
        try:
            act()
        except OSError:
            if status.status is not JobStatus.FAILED:
                raise  # else the disk is full, or gone, and that is why: the caller is told


def _label(plan: Plan) -> str:
    return plan.base.label if plan.base else plan.job.model.asset_name
