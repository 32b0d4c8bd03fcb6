"""The recipe keeps its word: schedules, accumulation, evaluation, saving, and the same bytes again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from local_runner import adapters
from local_runner.data import ChatTokenizer, load_examples
from local_runner.evaluate import mean_loss, pad
from local_runner.models import base as bases
from local_runner.models import tiny
from local_runner.train import train
from maas_client.errors import DatasetError, RunDirError
from maas_client.jobs import JobStatus
from maas_client.plan import plan_from_json
from maas_client.spec.rundir import RunDir, read_json

MakeRun = Callable[..., RunDir]
Bytes = Callable[[RunDir], tuple[bytes, bytes]]


def chat(*said: str) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"Question {n}"},
                {"role": "assistant", "content": text},
            ]
        }
        for n, text in enumerate(said)
    ]


def weights(run: RunDir) -> dict[str, torch.Tensor]:
    return load_file(run.adapter / adapters.WEIGHTS)


def column(run: RunDir, name: str) -> list[float]:
    return [metric[name] for metric in run.metrics() if name in metric]


def gap(one: RunDir, other: RunDir) -> float:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return max(float((first[key] - second[key]).abs().max()) for key in first)


def test_a_run_ends_well_and_learns(make_run: MakeRun) -> None:
    run = make_run(held_out=chat("Left of 3."), num_train_epochs=3)
    events = []
    assert train(run, on_event=events.append).status is JobStatus.SUCCEEDED
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    losses = column(run, "eval_loss")
    assert losses[-1] < losses[0] - 0.1
    assert column(run, "loss")[-1] < column(run, "loss")[0]
    manifest = read_json(run.manifest_file)
    assert manifest["base"]["stand_in"] is True
    assert manifest["inputs"]["training_data"]["sha256"]
    assert "adapter/adapter_model.safetensors" in manifest["outputs"]
    assert str(Path.home()) not in (run.adapter / adapters.CONFIG).read_text()


@pytest.mark.parametrize("extra", [{}, {"lora_dropout": 0.1, "enable_full_determinism": True}])
def test_the_same_plan_gives_the_same_bytes(
    make_run: MakeRun, adapter_bytes: Bytes, extra: dict[str, object]
) -> None:
    runs = [make_run(name, **extra) for name in ("one", "two")]
    for run in runs:
        train(run)
    assert adapter_bytes(runs[0]) == adapter_bytes(runs[1])
    other = make_run("other", seed=7, **extra)
    train(other)
    assert adapter_bytes(other)[0] != adapter_bytes(runs[0])[0]


def test_a_run_that_has_succeeded_is_not_trained_again(make_run: MakeRun) -> None:
    run = make_run()
    first = train(run)
    told = run.events_file.read_bytes()
    assert train(run) == first
    assert run.events_file.read_bytes() == told


@pytest.mark.parametrize(
    ("schedule", "extra", "shares"),
    [
        ("linear", {}, [1, 0.75, 0.5, 0.25]),
        ("linear", {"warmup_steps": 2}, [0, 0.5, 1, 0.5]),
        ("linear", {"warmup_ratio": 0.25}, [0, 1, 2 / 3, 1 / 3]),
        ("constant", {}, [1, 1, 1, 1]),
        ("constant_with_warmup", {"warmup_steps": 2}, [0, 0.5, 1, 1]),
        ("cosine", {}, [(1 + math.cos(math.pi * n / 4)) / 2 for n in range(4)]),
        ("cosine_with_restarts", {}, [(1 + math.cos(math.pi * n / 4)) / 2 for n in range(4)]),
        ("polynomial", {}, [1, 0.7500125, 0.500025, 0.2500375]),
    ],
)
def test_the_schedule_moves_the_learning_rate_as_its_name_says(
    make_run: MakeRun, schedule: str, extra: dict[str, object], shares: list[float]
) -> None:
    run = make_run(rows=chat("a", "b", "c", "d"), lr_scheduler_type=schedule, **extra)
    train(run)
    assert column(run, "learning_rate") == pytest.approx([0.002 * share for share in shares])


def test_multipliers_scale_the_rate_and_the_batch(make_run: MakeRun) -> None:
    run = make_run(
        lr_scheduler_type="constant", learning_rate_multiplier=0.5, batch_size_multiplier=4
    )
    train(run)
    assert column(run, "learning_rate") == pytest.approx([0.001] * 3)
    assert plan_from_json(read_json(run.plan_file)).steps == 3


@pytest.mark.parametrize(
    ("extra", "steps"),
    [
        ({}, 10),
        ({"num_train_epochs": 0.45}, 5),
        ({"num_train_epochs": 1.5, "per_device_train_batch_size": 3}, 6),
        ({"max_steps": 13}, 13),
        ({"gradient_accumulation_steps": 4, "num_train_epochs": 2}, 6),
    ],
)
def test_there_are_as_many_steps_as_the_plan_says(
    make_run: MakeRun, extra: dict[str, object], steps: int
) -> None:
    run = make_run(**extra)
    train(run)
    assert plan_from_json(read_json(run.plan_file)).steps == steps
    assert column(run, "step") == list(range(1, steps + 1))


def test_accumulation_is_a_bigger_batch(make_run: MakeRun) -> None:
    # Answers of very different lengths: a mean of micro-batch means would differ.
    rows = chat("a", "Left of the tap, and then straight on.", "b" * 40, "Yes.") * 2
    one = make_run("one", rows=rows, per_device_train_batch_size=4)
    two = make_run("two", rows=rows, gradient_accumulation_steps=4)
    for run in (one, two):
        train(run)
    assert column(one, "loss") == pytest.approx(column(two, "loss"), abs=1e-5)
    assert gap(one, two) < 1e-5


def test_gradients_are_clipped_and_decay_is_applied(make_run: MakeRun) -> None:
    plain = make_run("plain", max_grad_norm=0)
    train(plain)
    for name, extra in (("clipped", {"max_grad_norm": 0.01}), ("decayed", {"weight_decay": 0.5})):
        other = make_run(name, **extra)
        train(other)
        assert gap(plain, other) > 1e-6
    assert column(plain, "grad_norm")[0] > 0.01


def test_the_scale_is_alpha_over_r_or_its_root_with_rslora(make_run: MakeRun) -> None:
    for name, extra in (("plain", {}), ("root", {"use_rslora": True})):
        run = make_run(name, lora_r=4, lora_alpha=8, **extra)
        train(run)
        config = json.loads((run.adapter / adapters.CONFIG).read_text())
        assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (4, 8, bool(extra))
        assert weights(run)[f"{LAYER}.qkv_proj.lora_A.weight"].shape[0] == 4


LAYER = "base_model.model.model.layers.0.self_attn"


@pytest.mark.parametrize(
    ("extra", "at"),
    [
        ({"evaluation_strategy": "epoch", "num_train_epochs": 2}, [0, 10, 20]),
        ({"evaluation_strategy": "steps", "eval_steps": 4}, [0, 4, 8, 10]),
        ({"evaluation_strategy": "disable"}, []),
    ],
)
def test_the_validation_loss_is_measured_when_the_job_says(
    make_run: MakeRun, extra: dict[str, object], at: list[int]
) -> None:
    run = make_run(held_out=chat("Left.", "Right."), **extra)
    train(run)
    assert [m["step"] for m in run.metrics() if "eval_loss" in m] == at


def test_the_evaluation_batch_does_not_move_the_loss(make_run: MakeRun) -> None:
    runs = [
        make_run(f"by{n}", held_out=chat("a", "bcd", "e" * 30), per_device_eval_batch_size=n)
        for n in (1, 3)
    ]
    for run in runs:
        train(run)
    first, second = (column(run, "eval_loss") for run in runs)
    assert first == pytest.approx(second, abs=1e-6)


def test_early_stopping_stops_when_there_is_no_gain(make_run: MakeRun) -> None:
    run = make_run(
        held_out=chat("Left."),
        evaluation_strategy="steps",
        eval_steps=2,
        apply_early_stopping=True,
        early_stopping_patience=2,
        early_stopping_threshold=1000,
    )
    assert train(run).status is JobStatus.SUCCEEDED
    assert column(run, "step")[-1] == 6  # the first evaluation is the best; two without gain follow
    assert any("stopped early" in event.message for event in run.events())
    assert run.adapter.is_dir()


@pytest.mark.parametrize(
    ("extra", "left"),
    [
        ({"save_strategy": "steps", "save_steps": 3, "save_total_limit": 2}, [9, 10]),
        ({"save_strategy": "steps", "save_steps": 3, "save_total_limit": -1}, [3, 6, 9, 10]),
        ({"save_strategy": "epoch"}, [10]),
        ({"save_strategy": "disable"}, []),
    ],
)
def test_the_checkpoints_that_the_job_asks_for_stay(
    make_run: MakeRun, extra: dict[str, object], left: list[int]
) -> None:
    run = make_run(**extra)
    train(run)
    assert run.checkpoint_steps() == left


def test_rows_are_cut_to_the_longest_that_is_allowed(make_run: MakeRun) -> None:
    run = make_run(rows=chat("x" * 200), max_seq_length=50)
    train(run)
    assert any("1 rows, 50 tokens" in event.message for event in run.events())
    run = make_run("short", rows=chat("x" * 200), max_seq_length=10)
    with pytest.raises(DatasetError, match="line 1"):
        train(run)
    status = run.read_status()
    assert status is not None
    assert status.status is JobStatus.FAILED


def test_a_text_completion_is_trained(make_run: MakeRun) -> None:
    run = make_run(rows=[{"text": "The tap is left of the door."}] * 4, task="text_completion")
    assert train(run).status is JobStatus.SUCCEEDED


def by_hand(rows: Path) -> dict[str, torch.Tensor]:
    """The same job as anybody would write it: padded rows, labels, plain loops. Not our code."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoTokenizer, Phi3ForCausalLM, get_scheduler

    tokenizer = AutoTokenizer.from_pretrained(tiny.install())
    model = Phi3ForCausalLM.from_pretrained(tiny.install())
    torch.manual_seed(42)
    targets = ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]
    config = LoraConfig(r=8, lora_alpha=128, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    encoded = []
    for line in rows.read_text().splitlines():
        question, answer = (m["content"] for m in json.loads(line)["messages"])
        asked = tokenizer(f"<|user|>\n{question}<|end|>\n<|assistant|>\n")["input_ids"]
        said = tokenizer(f"{answer}<|end|>")["input_ids"]
        tail = tokenizer("\n<|endoftext|>")["input_ids"]
        ids = asked + said + tail
        encoded.append((ids, [-100] * len(asked) + said + [-100] * len(tail)))
    size, epochs = 2, 2
    steps = math.ceil(len(encoded) / size) * epochs
    optimizer = torch.optim.AdamW(
        [w for w in model.parameters() if w.requires_grad], lr=0.002, weight_decay=0.01
    )
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=2, num_training_steps=steps)
    for epoch in range(epochs):
        order = torch.randperm(len(encoded), generator=torch.Generator().manual_seed(42 + epoch))
        for first in range(0, len(encoded), size):
            chosen = [encoded[i] for i in order.tolist()[first : first + size]]
            longest = max(len(ids) for ids, _ in chosen)
            ids = torch.tensor([i + [257] * (longest - len(i)) for i, _ in chosen])
            labels = torch.tensor([k + [-100] * (longest - len(k)) for _, k in chosen])
            mask = torch.tensor([[1] * len(i) + [0] * (longest - len(i)) for i, _ in chosen])
            model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return get_peft_model_state_dict(model)


PEFT_WARNS = pytest.mark.filterwarnings(
    # peft reads a property that transformers 5 has renamed
    "ignore:.*is_gradient_checkpointing.*:FutureWarning"
)


@PEFT_WARNS
def test_peft_by_hand_gives_the_same_adapter(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(
        per_device_train_batch_size=2,
        num_train_epochs=2,
        weight_decay=0.01,
        lr_scheduler_type="cosine",
        warmup_steps=2,
    )
    train(run)
    ours, theirs = weights(run), by_hand(tmp_path / "run-train.jsonl")
    assert ours.keys() == theirs.keys()
    worst = max(float((ours[key] - theirs[key]).abs().max()) for key in ours)
    assert worst < 1e-5
    start = make_run("start", max_steps=1, lr_scheduler_type="linear", warmup_steps=1)
    train(start)  # a step of rate 0: what the adapter began with
    assert max(float((ours[k] - weights(start)[k]).abs().max()) for k in ours) > 1e-3


@PEFT_WARNS
def test_the_adapter_loads_in_plain_peft_with_the_same_loss(make_run: MakeRun) -> None:
    from peft import PeftModel
    from transformers import Phi3ForCausalLM

    run = make_run(held_out=chat("Left.", "Right of it."), num_train_epochs=2)
    train(run)
    plain = Phi3ForCausalLM.from_pretrained(tiny.install())
    model = PeftModel.from_pretrained(plain, run.adapter).eval()
    plan = plan_from_json(read_json(run.plan_file))
    assert plan.validation is not None
    rows = load_examples(ChatTokenizer(tiny.install()), Path(plan.validation.path), max_length=512)
    total, tokens = 0.0, 0
    for row in rows:
        labels = [i if t else -100 for i, t in zip(row.ids, row.trained, strict=True)]
        with torch.no_grad():
            out = model(input_ids=torch.tensor([row.ids]), labels=torch.tensor([labels]))
        total += out.loss.item() * sum(row.trained[1:])
        tokens += sum(row.trained[1:])
    assert total / tokens == pytest.approx(column(run, "eval_loss")[-1], abs=1e-4)


def test_the_merged_model_answers_as_the_adapter_does(make_run: MakeRun) -> None:
    run = make_run(merge_lora_weights=True)
    train(run)
    tokenizer = ChatTokenizer(run.merged)
    rows = tokenizer.encode(chat("Left.", "Right."), max_length=99)
    merged = bases.load(bases.resolve(str(run.merged), model="")).eval()
    adapted = adapters.open_on(bases.load(bases.resolve("tiny", model="")), run.adapter).eval()
    batch = pad(rows, tokenizer.eos_id)
    with torch.no_grad():
        one, two = (
            m(input_ids=batch.ids, attention_mask=batch.real).logits for m in (merged, adapted)
        )
    assert float((one - two)[batch.real.bool()].abs().max()) < 1e-4
    assert mean_loss(merged, rows, pad_id=0) == pytest.approx(
        mean_loss(adapted, rows, pad_id=0), abs=1e-5
    )


def test_changed_rows_are_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    (tmp_path / "run-train.jsonl").write_text(json.dumps(chat("Other.")[0]) + "\n")
    with pytest.raises(RunDirError, match="has changed since the plan was made"):
        train(run)
