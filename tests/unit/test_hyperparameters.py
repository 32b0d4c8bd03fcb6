"""The knobs and the strict reading of their text."""

from __future__ import annotations

import pytest

from maas_client.spec.hyperparameters import KNOBS, fault, read


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("learning_rate", "2e-5", 2e-5),
        ("learning_rate", "0.00002", 2e-5),
        ("num_train_epochs", "1", 1.0),
        ("num_train_epochs", "0.5", 0.5),
        ("seed", " 42 ", 42),
        ("apply_lora", "True", True),
        ("apply_lora", "false", False),
        ("lr_scheduler_type", "COSINE", "cosine"),
        ("max_steps", "-1", -1),
    ],
)
def test_text_is_read_strictly_into_its_type(key: str, text: str, value: object) -> None:
    got = read(KNOBS[key], text)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("learning_rate", "banana"),
        ("learning_rate", "0"),
        ("learning_rate", "nan"),
        ("learning_rate", "inf"),
        ("learning_rate", "1_0"),
        ("learning_rate", ""),
        ("lora_r", "8.0"),
        ("lora_r", "0"),
        ("lora_r", "99999"),
        ("seed", "-1"),
        ("apply_lora", "maybe"),
        ("lr_scheduler_type", "cosin"),
        ("precision", "64"),
    ],
)
def test_nonsense_is_refused_with_what_is_allowed(key: str, text: str) -> None:
    found = fault(key, text)
    assert found is not None
    assert text in found.message
    assert KNOBS[key].allowed in found.hint


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("lerning_rate", "learning_rate"),
        ("n_epochs", "num_train_epochs"),
        ("batch_size", "per_device_train_batch_size"),
    ],
)
def test_an_unknown_key_gets_the_nearest_known_one(key: str, near: str) -> None:
    found = fault(key, "1")
    assert found is not None
    assert near in found.hint


def test_every_default_is_a_value_that_could_be_written() -> None:
    for knob in KNOBS.values():
        if knob.default is not None:
            assert read(knob, str(knob.default)) == knob.default, knob.name
