"""Rows end to end give the losses, gradients and weights of a plain padded loop, faster."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from local_runner.data import Example
from local_runner.evaluate import mean_loss
from local_runner.flat import rows as flat_rows
from local_runner.flat.learner import Learner
from local_runner.flat.opening import open_learner
from local_runner.flat.projections import Beside
from local_runner.flat.rows import deal, lay, passes, share

TARGETS = ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 16,
    "factor": 4.0,
    "short_factor": [1.0, 1.1, 1.2],
    "long_factor": [1.5, 2.0, 3.0],
}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {"num_key_value_heads": 4},
    "groups, tied head": {"tie_word_embeddings": True},
    "window": {"sliding_window": 7},
    "longrope": {
        "max_position_embeddings": 64,
        "original_max_position_embeddings": 16,
        "rope_parameters": LONGROPE,
    },
}


def make_model(*, adapter: dict[str, Any] | None = None, **shape: Any) -> Any:
    """A random Phi-3 that is not sure of anything, with an adapter that is not zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import Phi3Config, Phi3ForCausalLM

    sizes = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "original_max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "sliding_window": None,
    }
    torch.manual_seed(0)
    model = Phi3ForCausalLM(Phi3Config(**(sizes | shape)))
    for weight in model.parameters():
        weight.data.mul_(3 if weight.ndim > 1 else 1)
        weight.requires_grad_(requires_grad=False)
    if adapter is None:
        return model
    config = LoraConfig(
        **({"r": 4, "lora_alpha": 8, "target_modules": TARGETS, "task_type": "CAUSAL_LM"} | adapter)
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        model = get_peft_model(model, config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


def make_rows(count: int, *, shortest: int = 4, longest: int = 40, seed: int = 1) -> list[Example]:
    dice, rows = random.Random(seed), []  # noqa: S311 - no secret
    for _ in range(count):
        length = dice.randint(shortest, longest)
        ids = tuple(dice.randrange(3, 97) for _ in range(length))
        trained = (*(dice.random() < 0.3 for _ in ids[:-1]), True)
        rows.append(Example(ids, trained, length))
    return rows


def optimizer(model: Any) -> torch.optim.Optimizer:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.optim.AdamW(weights, lr=2e-3, fused=True)


def padded_step(model: Any, batches: Sequence[Sequence[Example]]) -> float:
    """The step as anybody writes it with transformers and peft; its mean is over the step's tokens."""
    answers = sum(sum(row.trained[1:]) for batch in batches for row in batch)
    whole = 0.0
    for batch in batches:
        longest = max(len(row.ids) for row in batch)
        spare = [longest - len(row.ids) for row in batch]
        ids = torch.tensor(
            [[*row.ids] + [0] * more for row, more in zip(batch, spare, strict=True)]
        )
        labels = torch.tensor(
            [
                [i if t else -100 for i, t in zip(row.ids, row.trained, strict=True)]
                + [-100] * more
                for row, more in zip(batch, spare, strict=True)
            ]
        )
        real = torch.tensor(
            [[1] * len(row.ids) + [0] * more for row, more in zip(batch, spare, strict=True)]
        )
        out = model(input_ids=ids, attention_mask=real, labels=labels, num_items_in_batch=answers)
        out.loss.backward()
        whole += out.loss.item()
    return whole


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {n: w.grad.clone() for n, w in model.named_parameters() if w.requires_grad}


def learn(learner: Learner, batches: Sequence[Sequence[Example]]) -> float:
    answers = sum(sum(row.trained[1:]) for batch in batches for row in batch)
    return learner.learn(batches, answers)[0]


def flat(model: Any, *, threads: int = 1) -> Learner:
    learner = open_learner(model, threads=threads)
    assert learner is not None
    return learner


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("adapter", [{}, {"use_dora": True}, {"use_rslora": True}], ids=str)
def test_twenty_steps_are_those_of_a_plain_padded_loop(shape: str, adapter: dict[str, Any]) -> None:
    ours, theirs = (make_model(adapter=adapter, **SHAPES[shape]) for _ in range(2))
    learner, steps = flat(ours), [optimizer(model) for model in (ours, theirs)]
    # transformers turns all rows of a batch as its longest: here they are all of one kind.
    rows = make_rows(20 * 4, shortest=17 if shape == "longrope" else 4)
    for step in range(20):
        chosen = rows[step * 4 : step * 4 + 4]
        batches = [chosen[:2], chosen[2:]]  # two forward passes each
        loss, expected = learn(learner, batches), padded_step(theirs, batches)
        assert loss == pytest.approx(expected, rel=1e-4)
        if step == 0:
            mine, others = gradients(ours), gradients(theirs)
            assert mine.keys() == others.keys()
            for name, other in others.items():
                assert (mine[name] - other).norm() <= 1e-4 * other.norm(), name
        for each in steps:
            each.step()
            each.zero_grad()
    expected = mean_loss(theirs.merge_and_unload(), rows[:8], pad_id=0)
    assert learner.measure(rows[:8], batch=1)[0] == pytest.approx(expected, rel=1e-4)


def test_a_row_turns_by_its_own_length() -> None:
    model = make_model(**SHAPES["longrope"])
    short, long = make_rows(1, longest=15), make_rows(1, shortest=30, seed=2)
    alone = flat(model).measure(short, batch=1)[0], flat(model).measure(long, batch=1)[0]
    answers = [sum(rows[0].trained[1:]) for rows in (short, long)]
    both = sum(loss * count for loss, count in zip(alone, answers, strict=True)) / sum(answers)
    assert flat(model, threads=1).measure(short + long, batch=2)[0] == pytest.approx(both, rel=1e-6)


def test_the_same_bytes_for_the_same_rows_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr(flat_rows, "_WORTH_SHARING", 0)
    for threads in (2, 2, 1):
        model = make_model(adapter={})
        loss = learn(flat(model, threads=threads), [make_rows(7)])
        found.append((loss, gradients(model)))
    for name, grad in found[0][1].items():
        assert torch.equal(grad, found[1][1][name])
        assert torch.allclose(grad, found[2][1][name], rtol=1e-3, atol=1e-6)
    assert found[0][0] == found[1][0]


def test_a_layer_beside_its_dropout_has_the_gradient_that_autograd_finds() -> None:
    torch.manual_seed(0)
    x, base = torch.randn(6, 5, dtype=torch.double), torch.randn(4, 5, dtype=torch.double)
    a, b = torch.randn(2, 5, dtype=torch.double), torch.randn(4, 2, dtype=torch.double)
    inputs = [tensor.requires_grad_() for tensor in (x, a, b)]

    def call(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        layer = Beside(base, a, b, scale=1.5, dropout=0.4)
        return layer(x, torch.Generator().manual_seed(3))

    assert torch.autograd.gradcheck(call, inputs)
    dice = torch.Generator().manual_seed(3)
    kept = torch.empty_like(x, dtype=torch.bool).bernoulli_(0.6, generator=dice)
    expected = x @ base.t() + 1.5 * (x * kept / 0.6) @ a.t() @ b.t()
    assert torch.allclose(call(x, a, b), expected)


def test_dropout_drops_while_learning_and_not_while_measuring() -> None:
    model, rows = make_model(adapter={"lora_dropout": 0.5}), make_rows(4)
    learner = flat(model)
    torch.manual_seed(5)
    first = learn(learner, [rows])
    assert learn(learner, [rows]) != first
    torch.manual_seed(5)
    assert learn(learner, [rows]) == first
    measured = learner.measure(rows, batch=1)[0]
    assert measured == pytest.approx(mean_loss(model.merge_and_unload(), rows, pad_id=0), rel=1e-5)


@pytest.mark.parametrize(
    "adapter",
    [
        {"target_modules": [*TARGETS, "lm_head"]},
        {"use_dora": True, "lora_dropout": 0.1},
        {"modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
def test_what_it_does_not_compute_is_left_to_peft(adapter: dict[str, Any]) -> None:
    assert open_learner(make_model(adapter=adapter), threads=1) is None


def cost(row: Example) -> float:
    return len(row.ids) * 1e7


def test_rows_are_shared_so_that_nobody_waits_long() -> None:
    rows = make_rows(9)
    hands, width = share(rows, 2, cost)
    assert (len(hands), width) == (2, 1)
    assert sorted(map(id, rows)) == sorted(id(row) for hand in hands for row in hand)
    loads = [sum(len(row.ids) for row in hand) for hand in hands]
    assert max(loads) - min(loads) <= max(len(row.ids) for row in rows)
    # One row cannot be parted: its products take both threads.
    assert share(rows[:1], 2, lambda _: 1e9) == ([rows[:1]], 2)
    assert share(rows, 2, lambda _: 10) == ([rows], 1)
    assert deal(rows[:2], 3, lambda _: 1.0) == [[rows[0]], [rows[1]]]
    assert [len(part) for part in passes(rows, 10**6)] == [9]
    assert [len(part) for part in passes(rows, 1)] == [1] * 9


def test_the_first_token_of_a_row_is_predicted_by_nobody() -> None:
    row = Example((5, 6, 7), (True, False, True), 3)
    laid = lay([row, row])
    assert laid.ids.tolist() == [5, 6, 7, 5, 6, 7]
    assert laid.asked.tolist() == [1, 4]
    assert laid.targets.tolist() == [7, 7]
    assert laid.spans == ((0, 3), (3, 6))
