"""The recipe, top to bottom, one function an act.

    open -> load -> resume or start -> step, step, … -> save

A step is one optimizer update. Everything that decides a step's result is in the plan and in the
step's number: the order of the rows is drawn per epoch from the seed, so a run that is interrupted
and goes on from a checkpoint gives the same bytes as one that was not.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from local_runner import adapters, checkpoints, manifest
from local_runner.data import ChatTokenizer, Example, load_examples, max_length
from local_runner.evaluate import answer_logits, mean_loss, pad
from local_runner.models import base as bases
from maas_client.errors import MaasError, RunDirError
from maas_client.jobs import Event, JobStatus
from maas_client.plan import Plan, batch_size, count_steps, learning_rate, plan_from_json
from maas_client.spec.rundir import EventWriter, RunDir, RunStatus, file_digest, read_json

if TYPE_CHECKING:
    from peft import PeftModel

OnEvent = Callable[[Event], None]

_CRASH_CHECKPOINT_SECONDS = 30.0
"""How much work a killed run may lose."""


class _StopRequested(Exception):  # noqa: N818 - not a fault
    """Somebody asked the run to stop."""

    def __init__(self, status: JobStatus, words: str) -> None:
        super().__init__(words)
        self.status = status


@dataclass
class _Run:
    """What a training run holds while it goes on."""

    dir: RunDir
    plan: Plan
    base: bases.Base
    model: PeftModel
    optimizer: torch.optim.Optimizer
    rows: list[Example]
    held_out: list[Example]
    pad_id: int
    tell: Callable[..., None]
    step: int = 0
    best: float = math.inf
    worse: int = 0
    """Evaluations in a row without a gain, for early stopping."""
    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    """Tokens seen since the last metric."""
    norm: float = 0.0
    """Norm of the last gradient, before clipping."""
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
        rows_a_step = batch_size(self.values) * int(self.values["gradient_accumulation_steps"])
        return math.ceil(len(self.rows) / rows_a_step)


def train(run_dir: RunDir, *, on_event: OnEvent = lambda _: None) -> RunStatus:
    """Train the run's plan, or go on with it; returns the status it ended with.

    Raises:
        RunDirError: another process trains it, or its inputs are not those of the plan.
        MaasError: what made the run fail, after `status.json` says so.
    """
    with run_dir.locked():
        before = run_dir.read_status()
        if before is not None and before.status is JobStatus.SUCCEEDED:
            return before
        plan = plan_from_json(read_json(run_dir.plan_file))
        started = before.started_at if before and before.started_at else time.time()
        status = RunStatus(JobStatus.RUNNING, started_at=started)
        run_dir.write_status(status)
        writer = EventWriter(run_dir)

        def tell(kind: Any, message: str, data: dict[str, Any] | None = None) -> None:
            on_event(writer.write(kind, message, data))

        try:
            with _signals() as asked:
                base = _train(run_dir, plan, tell, asked)
            status = replace(status, status=JobStatus.SUCCEEDED, base=base)
        except _StopRequested as stop:
            status = replace(status, status=stop.status, error=str(stop))
        except (MaasError, OSError, RuntimeError) as error:
            status = replace(status, status=JobStatus.FAILED, error=_words(error))
            raise
        finally:
            status = replace(status, ended_at=time.time(), base=_label(plan))
            tell("status", _closing(status), {"status": str(status.status)})
            run_dir.write_status(status)
        return status


def _train(run_dir: RunDir, plan: Plan, tell: Callable[..., None], asked: _Asked) -> str:
    torch.set_num_threads(plan.threads or 1)
    if plan.values.get("enable_full_determinism"):
        torch.use_deterministic_algorithms(mode=True)
    tell("status", f"running on {_label(plan)}", {"status": "running"})
    run = _open(run_dir, plan, tell)
    _resume_or_start(run)
    run.clock = run.saved_at = time.monotonic()
    stopped_early = run.step > 0 and _is_stale(run)
    while run.step < run.steps and not stopped_early:
        _step(run)
        _report(run)
        stopped_early = _evaluate_if_due(run)
        _save_if_due(run)
        _stop_if_asked(run, asked)
    _finish(run)
    return _label(plan)


def _open(run_dir: RunDir, plan: Plan, tell: Callable[..., None]) -> _Run:
    """Check the inputs against the plan, and load everything."""
    base = bases.resolve(plan.base.source if plan.base else None, model=plan.job.model.asset_name)
    _check_inputs(plan, base)
    tokenizer = ChatTokenizer(base.folder)
    length = max_length(bases.read_config(base.folder), _int(plan, "max_seq_length"))

    def examples(path: str) -> list[Example]:
        return load_examples(tokenizer, Path(path), task=plan.job.task, max_length=length)

    rows = examples(plan.training.path)
    held_out = examples(plan.validation.path) if plan.validation else []
    model = adapters.attach(bases.load(base), plan, name=base.name)
    model.train()
    tokens = sum(len(row.ids) for row in rows)
    tell("log", f"{len(rows)} rows, {tokens:,} tokens, {len(held_out)} held out")
    return _Run(
        run_dir, plan, base, model, _optimizer(model, plan), rows, held_out, tokenizer.eos_id, tell
    )


def _check_inputs(plan: Plan, base: bases.Base) -> None:
    for data in (plan.training, plan.validation):
        if data and data.report and file_digest(Path(data.path)) != data.report.sha256:
            raise RunDirError(
                f"{data.path} has changed since the plan was made", hint="Plan again."
            )
    if plan.base and plan.base.digest != base.info.digest:
        raise RunDirError(
            f"{base.info.label}: the weights are not those of the plan", hint="Plan again."
        )


def _optimizer(model: PeftModel, plan: Plan) -> torch.optim.AdamW:
    """AdamW; biases and norms are not decayed, as in Hugging Face's Trainer."""
    values: dict[str, Any] = plan.values
    decayed: list[torch.nn.Parameter] = []
    plain: list[torch.nn.Parameter] = []
    for name, weight in sorted(model.named_parameters()):
        if weight.requires_grad:
            (plain if weight.ndim < 2 or "norm" in name else decayed).append(weight)
    groups = [
        {"params": decayed, "weight_decay": values["weight_decay"]},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=learning_rate(values),
        betas=(values["adam_beta1"], values["adam_beta2"]),
        eps=values["adam_epsilon"],
    )


def _resume_or_start(run: _Run) -> None:
    if steps := run.dir.checkpoint_steps():
        state = checkpoints.load(run.dir.checkpoint(steps[-1]), run.model, run.optimizer)
        run.step, run.best, run.worse = state.step, state.best, state.worse
        run.losses, run.tokens = list(state.losses), state.tokens
        run.tell("log", f"resumed at step {run.step} of {run.steps}")
        return
    torch.manual_seed(run.plan.seed)
    if run.held_out and run.values["evaluation_strategy"] != "disable":
        _evaluate(run)


def batches(run: _Run, step: int) -> Sequence[Sequence[Example]]:
    """The micro-batches of a step, counted from 0; the last step of an epoch may be smaller."""
    epoch, place = divmod(step, run.per_epoch)
    order = torch.randperm(
        len(run.rows), generator=torch.Generator().manual_seed(run.plan.seed + epoch)
    ).tolist()
    size = batch_size(run.values)
    rows_a_step = size * int(run.values["gradient_accumulation_steps"])
    chosen = [run.rows[i] for i in order[place * rows_a_step : (place + 1) * rows_a_step]]
    return [chosen[i : i + size] for i in range(0, len(chosen), size)]


def _step(run: _Run) -> None:
    """One optimizer update."""
    micro = batches(run, run.step)
    answers = sum(sum(row.trained[1:]) for batch in micro for row in batch)
    total = 0.0
    for batch in micro:
        logits, targets = answer_logits(run.model, pad(batch, run.pad_id))
        # Mean over answer tokens in the whole step, not mean of micro-batch means:
        # short answers would otherwise weigh more.
        loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum") / answers
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    if not math.isfinite(total):
        raise MaasError(
            f"the loss is {total} at step {run.step + 1}", hint="Lower learning_rate or lora_alpha."
        )
    weights = [w for group in run.optimizer.param_groups for w in group["params"]]
    ceiling = float(run.values["max_grad_norm"]) or math.inf
    norm = torch.nn.utils.clip_grad_norm_(weights, ceiling)
    for group in run.optimizer.param_groups:
        group["lr"] = rate_at(run.plan, run.steps, run.step)
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.step += 1
    run.losses.append(total)
    run.tokens += sum(len(row.ids) for batch in micro for row in batch)
    run.norm = norm.item()


def rate_at(plan: Plan, steps: int, step: int) -> float:
    """The learning rate of a step, counted from 0: Hugging Face's schedule of that name."""
    from transformers import get_scheduler

    values = plan.values
    warmup = int(values.get("warmup_steps") or 0)
    if not warmup and (ratio := values.get("warmup_ratio")):
        warmup = math.ceil(float(ratio) * steps)
    dummy = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=learning_rate(values))
    schedule = get_scheduler(
        values["lr_scheduler_type"], dummy, num_warmup_steps=warmup, num_training_steps=steps
    )
    return float(learning_rate(values) * schedule.lr_lambdas[0](step))


def _report(run: _Run) -> None:
    every = int(run.values["logging_steps"])
    if run.step % every and run.step not in {1, run.steps}:
        return
    now = time.monotonic()
    spent = max(now - run.clock, 1e-9)
    rate = run.tokens / spent
    left = spent / max(len(run.losses), 1) * (run.steps - run.step)
    data = {
        "step": run.step,
        "max_steps": run.steps,
        "epoch": round(run.step / run.per_epoch, 4),
        "loss": sum(run.losses) / len(run.losses),
        "grad_norm": run.norm,
        "learning_rate": rate_at(run.plan, run.steps, run.step - 1),
        "tokens_per_second": round(rate, 1),
        "seconds_left": round(left, 1),
    }
    words = f"step {run.step}/{run.steps}  loss {data['loss']:.4f}  {rate:,.0f} tokens/s"
    run.tell("metric", words, data)
    run.losses.clear()
    run.tokens, run.clock = 0, now


def _evaluate_if_due(run: _Run) -> bool:
    """Measure the validation loss where it is due; returns whether to stop early."""
    strategy = run.values["evaluation_strategy"]
    if not run.held_out or strategy == "disable":
        return False
    every = run.per_epoch if strategy == "epoch" else int(run.values["eval_steps"])
    if run.step % every and run.step != run.steps:
        return False
    start = time.monotonic()
    loss = _evaluate(run)
    run.clock += time.monotonic() - start  # evaluating is not training: keep it out of tokens/s
    if loss < run.best - float(run.values["early_stopping_threshold"]):
        run.best, run.worse = loss, 0
    else:
        run.worse += 1
    return _is_stale(run)


def _is_stale(run: _Run) -> bool:
    patience = int(run.values["early_stopping_patience"])
    if not run.values["apply_early_stopping"] or run.worse < patience:
        return False
    run.tell("log", f"stopped early at step {run.step}: no gain in {run.worse} evaluations")
    return True


def _evaluate(run: _Run) -> float:
    loss = mean_loss(run.model, run.held_out, pad_id=run.pad_id, batch=_eval_batch(run))
    run.model.train()
    data = {"step": run.step, "max_steps": run.steps, "eval_loss": loss}
    data["epoch"] = round(run.step / run.per_epoch, 4)
    run.tell("metric", f"step {run.step}/{run.steps}  validation loss {loss:.4f}", data)
    return loss


def _eval_batch(run: _Run) -> int:
    return int(run.values["per_device_eval_batch_size"])


def _save_if_due(run: _Run) -> None:
    if run.step >= run.steps:
        return  # the adapter itself is about to be written
    strategy = run.values["save_strategy"]
    every = {"epoch": run.per_epoch, "steps": int(run.values["save_steps"])}.get(strategy, 0)
    due = bool(every) and run.step % every == 0
    if due or time.monotonic() - run.saved_at > _CRASH_CHECKPOINT_SECONDS:
        _save(run)


def _save(run: _Run) -> None:
    state = checkpoints.State(run.step, run.best, run.worse, tuple(run.losses), run.tokens)
    checkpoints.save(run.dir, state, run.model, run.optimizer)
    checkpoints.prune(run.dir, keep=int(run.values["save_total_limit"]))
    run.saved_at = time.monotonic()


def _stop_if_asked(run: _Run, asked: _Asked) -> None:
    if run.dir.cancel_file.exists():
        raise _StopRequested(JobStatus.CANCELLED, f"cancelled at step {run.step}")
    if asked.signal and run.step < run.steps:
        _save(run)
        words = f"interrupted at step {run.step} of {run.steps}; run it again to go on"
        raise _StopRequested(JobStatus.CANCELLED, words)


def _finish(run: _Run) -> None:
    """Write what the run was for, whole, and the digests of it all."""
    staged = run.dir.path / "adapter.new"
    checkpoints.clear(staged)
    adapters.save(run.model, staged)
    checkpoints.publish(staged, run.dir.adapter)
    run.tell("log", f"adapter written to {run.dir.adapter.name}/")
    if run.values.get("merge_lora_weights"):
        _merge(run)
    manifest.write(run.dir, run.plan, run.base)


def _merge(run: _Run) -> None:
    staged = run.dir.path / "merged.new"
    checkpoints.clear(staged)
    merged = run.model.merge_and_unload()
    merged.save_pretrained(staged)
    for name in bases.TOKENIZER_FILES:
        if (source := run.base.folder / name).exists():
            (staged / name).write_bytes(source.read_bytes())
    checkpoints.publish(staged, run.dir.merged)
    run.tell("log", f"merged model written to {run.dir.merged.name}/")


@dataclass
class _Asked:
    """Whether a signal came."""

    signal: int = 0


@contextmanager
def _signals() -> Iterator[_Asked]:
    """SIGINT and SIGTERM ask for a checkpoint and an end; a second one ends at once."""
    asked = _Asked()

    def note(number: int, _: object) -> None:
        asked.signal = number
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _int(plan: Plan, key: str) -> int:
    value: Any = plan.values[key]
    return int(value)


def _label(plan: Plan) -> str:
    return plan.base.label if plan.base else plan.job.model.asset_name


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _closing(status: RunStatus) -> str:
    return f"{status.status}: {status.error}" if status.error else str(status.status)
