"""Each hyperparameter of Azure's and Hugging Face's changes what it should, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from local_runner import adapters, memory
from local_runner import train as recipe
from local_runner.judging import Judge
from local_runner.models import base as bases
from local_runner.optimizers import decay_groups, make_optimizer
from local_runner.train import train
from local_runner.update import rates
from maas_client.errors import BaseModelError, MaasError, RunDirError
from maas_client.plan import Plan, plan_from_json
from maas_client.spec.rundir import RunDir, read_json

MakeRun = Callable[..., RunDir]
Bytes = Callable[[RunDir], tuple[bytes, bytes]]

HELD_OUT = [
    {"messages": [{"role": "user", "content": "Tap?"}, {"role": "assistant", "content": word}]}
    for word in ("Left of it.", "Right.")
]


def plan_of(run: RunDir) -> Plan:
    return plan_from_json(read_json(run.plan_file))


def weights(run: RunDir) -> dict[str, torch.Tensor]:
    return load_file(run.adapter / adapters.WEIGHTS)


def column(run: RunDir, name: str) -> list[float]:
    return [metric[name] for metric in run.metrics() if name in metric]


def said(run: RunDir) -> str:
    return "\n".join(event.message for event in run.events())


@pytest.fixture(scope="module")
def base() -> bases.Base:
    return bases.resolve("tiny", model="")


@pytest.mark.parametrize("warmup", [{}, {"warmup_steps": 3}, {"warmup_ratio": 0.2}])
@pytest.mark.parametrize(
    "name",
    [
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "constant",
        "constant_with_warmup",
    ],
)
def test_the_rate_of_each_step_is_that_of_transformers(
    make_run: MakeRun, name: str, warmup: dict[str, float]
) -> None:
    from transformers import get_scheduler

    plan = plan_of(make_run(lr_scheduler_type=name, **warmup))
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.002)
    theirs = get_scheduler(
        name, optimizer, num_warmup_steps=0 if not warmup else 3, num_training_steps=11
    )
    ours = rates(plan, 11)
    for step in range(11):
        assert ours(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("method", ["full", "dora", "ia3"])
def test_the_trainer_of_transformers_decays_the_same_weights(
    make_run: MakeRun, base: bases.Base, method: str
) -> None:
    from transformers import Trainer

    plan = plan_of(make_run(peft_method=method))
    model = adapters.attach(bases.load(base), plan, name="tiny")
    names = {id(weight): name for name, weight in model.named_parameters()}
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    theirs = set(Trainer.get_decay_parameter_names(None, model)) & trained
    decayed, plain = ({names[id(weight)] for weight in group} for group in decay_groups(model))
    assert decayed == theirs
    assert plain == trained - theirs
    assert bool(plain) is (method == "full")


@pytest.mark.parametrize(
    ("optim", "word"),
    [
        ("adamw_torch", "AdamW"),
        ("adamw_hf", "AdamW"),
        ("adamw_torch_fused", "AdamW"),
        ("adamw_bnb_8bit", "AdamW8bit"),
        ("adafactor", "Adafactor"),
        ("sgd", "SGD"),
    ],
)
def test_the_optimizer_is_the_one_that_is_named_with_its_numbers(
    make_run: MakeRun, optim: str, word: str
) -> None:
    adam = {"adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6}
    given = adam if word.startswith("AdamW") else {}
    plan = plan_of(make_run(optim=optim, weight_decay=0.1, **given))
    layer = torch.nn.Linear(8, 8)
    made = make_optimizer(layer, plan)
    assert type(made).__name__ == word
    assert [group["weight_decay"] for group in made.param_groups] == [0.1, 0.0]
    for group in made.param_groups:
        assert group["lr"] == 0.002
        if given:
            assert (tuple(group["betas"]), group["eps"]) == ((0.8, 0.95), 1e-6)


@pytest.mark.parametrize("optim", ["adafactor", "sgd", "adamw_bnb_8bit"])
def test_every_optimizer_goes_on_where_it_was(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, adapter_bytes: Bytes, optim: str
) -> None:
    monkeypatch.setattr(recipe, "_CRASH_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(recipe, "_CRASH_CHECKPOINT_SHARE", 0.0)
    # 8-bit states are for tensors of 4,096 numbers and more.
    broken, whole = (
        make_run(name, optim=optim, max_steps=5, lora_r=64) for name in ("broken", "whole")
    )

    def die(event: object) -> None:
        if getattr(event, "data", {}).get("step") == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(broken, on_event=die)
    train(broken)
    train(whole)
    assert adapter_bytes(broken) == adapter_bytes(whole)
    assert len(set(column(whole, "loss"))) == 5


BASELINE: dict[str, object] = {"max_steps": 3, "save_strategy": "disable"}


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.004},
        {"weight_decay": 0.5},
        {"adam_beta1": 0.5},
        {"adam_beta2": 0.5},
        {"adam_epsilon": 0.1},
        {"max_grad_norm": 0.01},
        {"seed": 7},
        {"lora_alpha": 4},
        {"lora_r": 4},
        {"lora_dropout": 0.5},
        {"use_rslora": True},
        {"init_lora_weights": "gaussian"},
        {"optim": "sgd"},
        {"precision": "bf16"},
        {"gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 2},
        {"max_seq_length": 40},
        {"warmup_steps": 2},
    ],
    ids=lambda change: "-".join(f"{key}-{value}" for key, value in change.items()),
)
def test_what_changes_the_result_changes_it(
    make_run: MakeRun, plain_bytes: bytes, adapter_bytes: Bytes, change: dict[str, object]
) -> None:
    run = make_run(**BASELINE | change)
    train(run)
    assert adapter_bytes(run)[0] != plain_bytes


@pytest.mark.parametrize(
    "change",
    [
        {"logging_steps": 2},
        {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1},
        {"auto_find_batch_size": True},
        {"resume_from_checkpoint": True},
        {"apply_deepspeed": True, "deepspeed_stage": 3},
        {"apply_ort": True},
        {"optim": "adamw_torch_fused"},
        {"enable_full_determinism": True},
    ],
    ids="-".join,
)
def test_what_does_not_change_the_result_leaves_its_bytes(
    make_run: MakeRun, plain_bytes: bytes, adapter_bytes: Bytes, change: dict[str, object]
) -> None:
    run = make_run(**BASELINE | change)
    train(run)
    assert adapter_bytes(run)[0] == plain_bytes


@pytest.fixture
def plain_bytes(make_run: MakeRun, adapter_bytes: Bytes, kept: dict[str, bytes]) -> bytes:
    if not kept:
        run = make_run("plain", **BASELINE)
        train(run)
        kept["plain"] = adapter_bytes(run)[0]
    return kept["plain"]


@pytest.fixture(scope="module")
def kept() -> dict[str, bytes]:
    return {}


def test_metrics_come_as_often_as_logging_steps_says(make_run: MakeRun) -> None:
    run = make_run(max_steps=7, logging_steps=3)
    train(run)
    assert column(run, "step") == [1, 3, 6, 7]


def test_bf16_holds_the_frozen_base_and_leaves_the_trained_weights_exact(
    make_run: MakeRun, base: bases.Base
) -> None:
    plan = plan_of(make_run(precision="bf16"))
    model = adapters.attach(adapters.load_base(base, plan), plan, name="tiny")
    types = {weight.requires_grad: weight.dtype for weight in model.parameters()}
    assert types == {True: torch.float32, False: torch.bfloat16}
    whole = plan_of(make_run("whole", precision="bf16", peft_method="full"))
    trained = adapters.attach(adapters.load_base(base, whole), whole, name="tiny")
    assert {weight.dtype for weight in trained.parameters()} == {torch.float32}


def test_the_best_model_is_kept_and_not_the_last(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, adapter_bytes: Bytes
) -> None:
    knobs: dict[str, Any] = {
        "held_out": HELD_OUT,
        "max_steps": 6,
        "learning_rate": 0.3,  # it gets worse soon
        "lora_dropout": 0.1,
        "evaluation_strategy": "steps",
        "eval_steps": 1,
        "lr_scheduler_type": "constant",
        "load_best_model_at_end": True,
    }
    run = make_run(**knobs)
    train(run)
    losses = column(run, "eval_loss")[1:]
    best = losses.index(min(losses)) + 1
    assert best < 6
    assert f"the best evaluation was at step {best}" in said(run)
    assert run.best_steps() == []
    short = make_run("short", **knobs | {"max_steps": best, "load_best_model_at_end": False})
    train(short)
    assert adapter_bytes(run) == adapter_bytes(short)
    # Killed after each step, it ends with the same bytes: what was best comes back, too.
    monkeypatch.setattr(recipe, "_CRASH_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(recipe, "_CRASH_CHECKPOINT_SHARE", 0.0)
    broken = make_run("broken", **knobs)
    for step in (2, best + 1, 6):

        def die(event: object, step: int = step) -> None:
            data = getattr(event, "data", {})
            if data.get("step") == step and "eval_loss" in data:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(broken, on_event=die)
    train(broken)
    assert adapter_bytes(broken) == adapter_bytes(run)


@pytest.mark.parametrize(
    ("losses", "threshold", "worse", "best"),
    [
        ([3.0, 2.0, 1.0], 0.0, 0, 3),
        ([3.0, 3.0], 0.0, 1, 1),
        ([3.0, 2.95, 2.9], 0.1, 2, 3),  # small gains: a new best each, and still no gain
        ([3.0, 2.0, 2.5, 2.4], 0.0, 2, 2),
    ],
)
def test_a_gain_is_what_the_trainer_of_transformers_calls_one(
    losses: list[float], threshold: float, worse: int, best: int
) -> None:
    judge = Judge(by_accuracy=False, threshold=threshold)
    for step, loss in enumerate(losses, 1):
        judge.take(step, loss, accuracy=0.5)
    assert (judge.worse, judge.best_step) == (worse, best)


def test_the_best_can_be_judged_by_the_share_that_is_right() -> None:
    judge = Judge(by_accuracy=True, threshold=0.0)
    for step, accuracy in enumerate((0.1, 0.4, 0.3), 1):
        judge.take(step, loss=float(step), accuracy=accuracy)
    assert judge.best_step == 2


def test_the_batch_is_halved_when_memory_runs_out_and_the_step_stays_the_same(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    knobs = BASELINE | {
        "per_device_train_batch_size": 4,
        "use_dora": True,
        "lora_dropout": 1e-9,  # through peft, whose passes are as wide as the job says
    }
    plain = make_run("plain", **knobs)
    train(plain)
    run = make_run(auto_find_batch_size=True, **knobs)
    seen: list[int] = []

    def narrow(learner: object, optimizer: object, batches: memory.Batches, **more: Any) -> Any:
        seen.append(max(map(len, batches)))
        if seen[-1] > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(learner, optimizer, batches, **more)

    real = recipe.update
    monkeypatch.setattr(recipe, "update", narrow)
    train(run)
    assert seen == [4, 2, 1, 1, 1]
    assert "1 rows in a forward pass from step 1" in said(run)
    ours, theirs = weights(run), weights(plain)
    assert max(float((ours[key] - theirs[key]).abs().max()) for key in ours) < 1e-5
    refused = make_run("refused", **knobs)
    with pytest.raises(MaasError, match="auto_find_batch_size"):
        train(refused)


def test_a_run_can_begin_with_the_checkpoint_of_another(
    make_run: MakeRun, adapter_bytes: Bytes
) -> None:
    knobs = {"lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 2}
    first = make_run("first", max_steps=4, **knobs)
    train(first)
    later = make_run("later", max_steps=7, resume_from_checkpoint=first.path, **knobs)
    train(later)
    assert column(later, "step") == [5, 6, 7]
    whole = make_run("whole", max_steps=7, **knobs)
    train(whole)
    assert adapter_bytes(later) == adapter_bytes(whole)


@pytest.mark.parametrize(
    ("place", "change", "word"),
    [
        ("nowhere", {}, "is no checkpoint"),
        ("first", {"max_steps": 2}, "the job ends at 2"),
        ("first", {"peft_method": "ia3"}, "another method"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    make_run: MakeRun, tmp_path: Path, place: str, change: dict[str, object], word: str
) -> None:
    train(make_run("first", max_steps=2))
    run = make_run(**{"max_steps": 4, "resume_from_checkpoint": tmp_path / place} | change)
    with pytest.raises((RunDirError, BaseModelError), match=word):
        train(run)
    assert json.loads(run.status_file.read_text())["status"] == "failed"
