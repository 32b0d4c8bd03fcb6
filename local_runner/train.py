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
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from local_runner import adapters, checkpoints, compared, inputs, manifest, memory, outcome
from local_runner.data import ChatTokenizer, load_examples, max_length
from local_runner.judging import open_judge
from local_runner.learning import open_learner
from local_runner.models import base as bases
from local_runner.optimizers import make_optimizer
from local_runner.stopping import Signals, StopRequested, in_our_words, signals
from local_runner.underway import Run
from local_runner.update import Update, micro_batches, rates, update
from maas_client.errors import MaasError, RunDirError
from maas_client.jobs import Event, JobStatus
from maas_client.plan import Plan, count_steps
from maas_client.spec.forecast import thriftier
from maas_client.spec.rundir import (
    KEPT_EPOCHS,
    EventWriter,
    RunDir,
    RunStatus,
)

OnEvent = Callable[[Event], None]
Tell = Callable[..., None]

_CRASH_CHECKPOINT_SECONDS = 30.0
"""How much work a killed run may lose. Writing an adapter takes about a tenth of a second."""
_CRASH_CHECKPOINT_SHARE = 20.0
"""Of a checkpoint that takes long: it is written as seldom as to cost a twentieth of the time."""


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


def _open(run_dir: RunDir, plan: Plan, tell: Tell) -> Run:
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
    model = adapters.attach(adapters.load_base(base, plan), plan, name=base.name)
    tokens = sum(len(row.ids) for row in rows)
    words = f"{len(rows)} rows, {tokens:,} tokens, {len(held_out)} held out, {steps} steps"
    tell("log", words, {"tokens": tokens})
    for remark in compared.remarks(base, tokenizer):
        tell("log", remark)
    if plan.values["apply_early_stopping"] and not held_out:
        tell("log", "apply_early_stopping does nothing: there are no validation rows")
    return Run(
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
        judge=open_judge(plan.values),
    )


def _resume_or_start(run: Run) -> int | None:
    """Go on from the last checkpoint; returns its step, or None where there is none."""
    steps = run.dir.checkpoint_steps()
    inputs.forget_metrics(run.dir, after=steps[-1] if steps else -1)
    if steps:
        state = checkpoints.load(run.dir.checkpoint(steps[-1]), run.model, run.optimizer)
        _take_up(run, state)
        run.tell("log", f"resumed at step {run.step} of {run.steps}")
        return run.step
    torch.manual_seed(run.plan.seed)
    if isinstance(place := run.values.get("resume_from_checkpoint"), str):
        _take_up(run, checkpoints.begin_from(Path(place), run.model, run.optimizer))
        if run.is_over:
            raise RunDirError(
                f"resume_from_checkpoint: {place} is at step {run.step}, and the job ends at {run.steps}",
                hint="Raise num_train_epochs or max_steps: they count from the checkpoint's own start.",
            )
        run.tell("log", f"begun at step {run.step} of {run.steps}, with the checkpoint in {place}")
    if run.held_out and run.values["evaluation_strategy"] != "disable":
        _evaluate(run)  # before and after come from the same code
    return None


def _take_up(run: Run, state: checkpoints.State) -> None:
    judge = run.judge
    judge.best, judge.best_step, judge.worse = state.best, state.best_step, state.worse
    run.step, run.halvings = state.step, state.halvings
    run.losses, run.tokens = list(state.losses), state.tokens


def _step(run: Run) -> None:
    dice = torch.get_rng_state()
    try:
        done = _updated(run)
    except (MemoryError, RuntimeError) as error:
        if run.step and memory.is_out_of_memory(error):
            torch.set_rng_state(dice)  # as if the step had not begun
            with suppress(MemoryError, RuntimeError):  # else there is an older checkpoint
                _save(run, asked_for=False)
        raise
    run.step += 1
    run.losses.append(done.loss)
    run.tokens += done.tokens
    run.norm, run.accuracy = done.norm, done.accuracy


def _updated(run: Run) -> Update:
    batches = micro_batches(run.rows, run.plan, run.step)

    def work(batches: memory.Batches) -> Update:
        ceiling, rate = float(run.values["max_grad_norm"]), run.rate(run.step)
        with run.products:
            return update(run.learner, run.optimizer, batches, rate=rate, ceiling=ceiling)

    if run.values.get("auto_find_batch_size"):
        before, forget = run.halvings, run.optimizer.zero_grad
        done, run.halvings = memory.within(work, batches, halvings=before, forget=forget)
        if run.halvings > before:
            most = max(map(len, memory.halved(batches, run.halvings)))
            run.tell(
                "log", f"memory ran out: {most} rows in a forward pass from step {run.step + 1}"
            )
    else:
        done = work(batches)
    return done


def _report(run: Run) -> None:
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


def _evaluate_if_due(run: Run) -> None:
    strategy = run.values["evaluation_strategy"]
    if not run.held_out or strategy == "disable":
        return
    every = run.per_epoch if strategy == "epoch" else int(run.values["eval_steps"])
    if run.step % every and run.step != run.steps:
        return
    start = time.monotonic()
    loss, accuracy = _evaluate(run)
    run.clock += time.monotonic() - start  # evaluating is not training: keep it out of tokens/s
    if run.judge.take(run.step, loss, accuracy) and run.values["load_best_model_at_end"]:
        checkpoints.save_best(run.dir, run.step, run.model)


def _evaluate(run: Run) -> tuple[float, float]:
    batch = int(run.values["per_device_eval_batch_size"])
    with run.products:
        loss, accuracy = run.learner.measure(run.held_out, batch=batch)
    words = f"step {run.step}/{run.steps}  validation loss {loss:.4f}"
    data = {"step": run.step, "max_steps": run.steps, "epoch": run.epoch, "eval_loss": loss}
    if run.keep_epochs:
        data["eval_token_accuracy"] = accuracy
    run.tell("metric", words, data)
    return loss, accuracy


def _save_if_due(run: Run) -> None:
    strategy = run.values["save_strategy"]
    every = {"epoch": run.per_epoch, "steps": int(run.values["save_steps"])}.get(strategy, 0)
    if every and (run.step % every == 0 or run.step == run.steps):
        _save(run, asked_for=True)
    elif not run.is_over and time.monotonic() - run.saved_at > max(
        _CRASH_CHECKPOINT_SECONDS, _CRASH_CHECKPOINT_SHARE * run.save_seconds
    ):
        _save(run, asked_for=False)


def _keep_epoch_if_due(run: Run) -> None:
    if run.keep_epochs and run.step % run.per_epoch == 0:
        epoch = run.step // run.per_epoch
        checkpoints.save_epoch(run.dir, epoch, run.step, run.model, keep=KEPT_EPOCHS)


def _save(run: Run, *, asked_for: bool) -> None:
    start = time.monotonic()
    state = checkpoints.State(
        step=run.step,
        best=run.judge.best,
        worse=run.judge.worse,
        losses=tuple(run.losses),
        tokens=run.tokens,
        asked_for=asked_for,
        best_step=run.judge.best_step,
        halvings=run.halvings,
    )
    checkpoints.save(run.dir, state, run.model, run.optimizer)
    checkpoints.prune(run.dir, keep=int(run.values["save_total_limit"]))
    run.saved_at = time.monotonic()
    run.save_seconds = run.saved_at - start


def _stop_if_asked(run: Run, caught: Signals) -> None:
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


def _finish(run: Run, *, seconds: float, resumed_at: int | None) -> None:
    """Write what the run was for, whole, and the digests of it all."""
    if run.step < run.steps:
        run.tell(
            "log", f"stopped early at step {run.step}: no gain in {run.judge.worse} evaluations"
        )
    best = run.judge.best_step
    if run.values["load_best_model_at_end"] and best not in (None, run.step):
        checkpoints.load_best(run.dir, int(best or 0), run.model)
        run.tell("log", f"the best evaluation was at step {best}: that is what is kept")
    outcome.write(run.dir, run.plan, run.model, run.base, tell=run.tell)
    took = {"steps": run.step, "seconds": round(seconds, 1), "resumed_at_step": resumed_at}
    manifest.write(run.dir, run.plan, run.base.info, took=took)


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
