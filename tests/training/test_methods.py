"""Every method of training: it learns, resumes to the byte, loads again with the same loss, and is served."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from local_runner import adapters
from local_runner import train as recipe
from local_runner.data import ChatTokenizer, load_examples
from local_runner.evaluate import mean_loss, pad
from local_runner.generate import Answerer, Ask
from local_runner.methods import prompts
from local_runner.models import base as bases
from local_runner.models import tiny
from local_runner.train import train
from maas_client.errors import BaseModelError
from maas_client.plan import Plan, plan_from_json
from maas_client.spec.rundir import RunDir, read_json

MakeRun = Callable[..., RunDir]

HELD_OUT = [
    {"messages": [{"role": "user", "content": "Tap?"}, {"role": "assistant", "content": word}]}
    for word in ("Left of it.", "Right.")
]
FOUR = {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}
METHODS: dict[str, dict[str, object]] = {
    "lora": {"lora_dropout": 0.1, "use_rslora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "pissa": {"init_lora_weights": "pissa_niter_4", "lora_alpha": 8},
    "olora": {"init_lora_weights": "olora", "use_rslora": True, "lora_alpha": 8},
    "dora": {"peft_method": "dora", "lora_dropout": 0.1},
    "qlora": FOUR,
    "qdora-fp4": FOUR | {"use_dora": True, "bnb_4bit_quant_type": "fp4"},
    "lora-8bit": {"load_in_8bit": True},
    "ia3": {"peft_method": "ia3", "learning_rate": 0.02},
    "prefix_tuning": {
        "peft_method": "prefix_tuning",
        "num_virtual_tokens": 5,
        "learning_rate": 0.05,
        "per_device_train_batch_size": 2,
    },
    "prompt_tuning": {
        "peft_method": "prompt_tuning",
        "num_virtual_tokens": 5,
        "learning_rate": 0.05,
        "per_device_train_batch_size": 2,
    },
    "vera": {"peft_method": "vera", "lora_r": 16, "learning_rate": 0.02, "lora_dropout": 0.1},
    "oft": {"peft_method": "oft", "lora_dropout": 0.1},
    "full": {"peft_method": "full"},
    "full-bf16": {"apply_lora": False, "precision": "bf16"},
    "lora-bf16": {"precision": "bf16"},
}
COMMON = {"max_steps": 6, "gradient_accumulation_steps": 2, "save_strategy": "disable"}
ADAPTERS = [name for name in METHODS if not name.startswith("full")]


def plan_of(run: RunDir) -> Plan:
    return plan_from_json(read_json(run.plan_file))


def held_out(run: RunDir) -> list[Any]:
    validation = plan_of(run).validation
    assert validation is not None
    return load_examples(ChatTokenizer(tiny.install()), Path(validation.path), max_length=512)


def result(run: RunDir) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in run.trained.iterdir()}


def eval_losses(run: RunDir) -> list[float]:
    return [metric["eval_loss"] for metric in run.metrics() if "eval_loss" in metric]


@pytest.fixture(scope="module")
def base() -> bases.Base:
    return bases.resolve("tiny", model="")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_resumes_to_the_byte_and_loads_again_with_the_same_loss(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, base: bases.Base, name: str
) -> None:
    monkeypatch.setattr(recipe, "_CRASH_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(recipe, "_CRASH_CHECKPOINT_SHARE", 0.0)
    broken, whole = (
        make_run(each, held_out=HELD_OUT, **COMMON, **METHODS[name]) for each in ("broken", "whole")
    )

    def die(event: object) -> None:
        if getattr(event, "data", {}).get("step") == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(broken, on_event=die)
    assert broken.checkpoint_steps()[-1] == 3
    train(broken)
    train(whole)
    assert result(broken) == result(whole)
    before, *_, after = eval_losses(whole)
    assert after < before - 1e-3
    plan = plan_of(whole)
    same = bases.load(base) if name in ("pissa", "olora") else adapters.load_base(base, plan)
    opened = adapters.open_on(same, whole.trained)
    again = mean_loss(opened, held_out(whole), pad_id=257)
    assert again == pytest.approx(after, abs=1e-2 if "bf16" in name else 1e-5)


@pytest.mark.parametrize("name", ["lora", "pissa", "dora", "qlora", "ia3", "vera", "oft"])
def test_a_merged_model_needs_no_adapter(make_run: MakeRun, base: bases.Base, name: str) -> None:
    run = make_run(merge_lora_weights=True, held_out=HELD_OUT, **COMMON, **METHODS[name])
    train(run)
    merged = bases.load(bases.resolve(str(run.merged), model=""))
    adapted = adapters.open_on(bases.load(base), run.adapter)
    rows = held_out(run)
    assert mean_loss(merged, rows, pad_id=257) == pytest.approx(
        mean_loss(adapted, rows, pad_id=257), abs=1e-5
    )


@pytest.mark.parametrize("name", ["prefix_tuning", "prompt_tuning"])
def test_virtual_tokens_are_those_of_peft(make_run: MakeRun, base: bases.Base, name: str) -> None:
    plan = plan_of(make_run(**METHODS[name]))
    model = adapters.attach(bases.load(base), plan, name="tiny").eval()
    rows = ChatTokenizer(tiny.install()).encode(HELD_OUT, max_length=99)
    batch = pad(rows, 257)
    with torch.no_grad():
        theirs = model(input_ids=batch.ids, attention_mask=batch.real).logits
        ours = model.get_base_model().lm_head(prompts.hidden_states(model, batch.ids, batch.real))
    gap = (ours - theirs[:, -batch.ids.shape[1] :])[batch.real.bool()].abs().max()
    assert float(gap) < 1e-5


@pytest.fixture(scope="module")
def answerer(base: bases.Base) -> Answerer:
    return Answerer(base)


@pytest.mark.parametrize("name", ["pissa", "dora", "ia3", "prefix_tuning", "prompt_tuning", "full"])
def test_what_was_trained_answers_as_peft_has_it(
    make_run: MakeRun, base: bases.Base, answerer: Answerer, name: str
) -> None:
    run = make_run(**COMMON, **METHODS[name])
    train(run)
    asked = HELD_OUT[0]["messages"][:1]
    said = "".join(
        piece
        for piece in answerer.answer(Ask(asked, adapter=run.trained, max_tokens=8))
        if isinstance(piece, str)
    )
    ids = answerer.tokenizer.prompt(asked)
    model = adapters.open_on(bases.load(base), run.trained).eval()
    with torch.no_grad():
        for _ in range(8):
            logits = model(input_ids=torch.tensor([ids])).logits  # no cache: all of it each time
            ids.append(int(logits[0, -1].argmax()))
    speech = answerer.tokenizer.raw.decode(ids[-8:], skip_special_tokens=True)
    assert said == speech
    alone = "".join(p for p in answerer.answer(Ask(asked, max_tokens=8)) if isinstance(p, str))
    assert alone != said


def test_a_start_that_changes_the_base_is_saved_as_an_adapter_of_the_plain_one(
    make_run: MakeRun, base: bases.Base
) -> None:
    run = make_run(lora_r=4, **COMMON, **METHODS["pissa"])
    train(run)
    config = json.loads((run.adapter / adapters.CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 16, True)
    still = make_run("still", **COMMON, **METHODS["olora"] | {"learning_rate": 1e-12})
    train(still)
    rows = ChatTokenizer(tiny.install()).encode(HELD_OUT, max_length=99)
    plain = mean_loss(bases.load(base), rows, pad_id=257)
    started = mean_loss(adapters.open_on(bases.load(base), still.adapter), rows, pad_id=257)
    assert started == pytest.approx(plain, abs=1e-5)


def test_only_what_the_method_names_is_trained(make_run: MakeRun, base: bases.Base) -> None:
    counts = {}
    for name in ADAPTERS:
        plan = plan_of(make_run(name, **METHODS[name]))
        model = adapters.attach(adapters.load_base(base, plan), plan, name="tiny")
        trained = [w for w in model.parameters() if w.requires_grad]
        assert all(weight.dtype is torch.float32 for weight in trained)
        counts[name] = sum(weight.numel() for weight in trained)
    # Two layers of 64 features: IA3 has 128 + 160 factors each, a prompt five embeddings, a prefix
    # five tokens' keys and values.
    assert counts["ia3"] == 2 * (128 + 160)
    assert counts["prompt_tuning"] == 5 * 64
    assert counts["prefix_tuning"] == 5 * 2 * 2 * 32
    assert counts["dora"] == counts["lora"] + 2 * (64 + 128 + 320 + 64)
    assert counts["qlora"] == counts["lora"]


def test_four_bits_hold_the_projections_and_nothing_else(
    make_run: MakeRun, base: bases.Base
) -> None:
    model = adapters.load_base(base, plan_of(make_run(**FOUR)))
    layer = model.model.layers[0].mlp.down_proj
    assert (layer.weight.dtype, layer.weight.quant_type) == (torch.uint8, "nf4")
    assert layer.weight.quant_state.nested
    assert model.lm_head.weight.dtype is torch.float32


@pytest.mark.parametrize("name", ["ia3", "vera", "oft", "prompt_tuning", "prefix_tuning", "dora"])
def test_another_models_adapter_is_refused(
    make_run: MakeRun, base: bases.Base, tmp_path: Path, name: str
) -> None:
    plan = plan_of(make_run(**METHODS[name]))
    model = adapters.attach(bases.load(base), plan, name="tiny")
    adapters.save(model, tmp_path / "fits")
    adapters.check(bases.load(base), tmp_path / "fits")
    other = tmp_path / "other"
    other.mkdir()
    from safetensors.torch import save_file

    state = load_file(tmp_path / "fits" / adapters.WEIGHTS)
    wider = {key: torch.cat((tensor, tensor), dim=-1) for key, tensor in state.items()}
    save_file(wider, other / adapters.WEIGHTS)
    (other / adapters.CONFIG).write_bytes((tmp_path / "fits" / adapters.CONFIG).read_bytes())
    with pytest.raises(BaseModelError, match="another model"):
        adapters.open_on(bases.load(base), other)


def test_blocks_that_do_not_fill_a_projection_are_refused(
    make_run: MakeRun, base: bases.Base
) -> None:
    plan = plan_of(make_run(peft_method="oft", oft_block_size=48))
    with pytest.raises(BaseModelError, match="oft_block_size is 48"):
        adapters.attach(bases.load(base), plan, name="tiny")
