"""Many answers in one forward pass: each is what transformers' generate makes of it alone."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import Phi3Config, Phi3ForCausalLM

from local_runner import adapters, low_rank
from local_runner.generate import Answer, Answerer, Ask
from local_runner.lean import Chunk, Lean, Memory
from local_runner.models import base as bases
from local_runner.models.family import ARCHITECTURES
from local_runner.speech import Ending
from maas_client.errors import BaseModelError

WORDS = ("tap", "a door that is red", "lamps?" * 9, "x", "the " * 20, "north", "12", "why not here")
Reference = Callable[[Ask], list[int]]


def asked(words: str, **how: Any) -> Ask:
    return Ask([{"role": "user", "content": words}], **{"max_tokens": 20, **how})


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    return Answerer(bases.resolve("tiny", model=""))


@pytest.fixture(autouse=True)
def nothing_is_left(answerer: Answerer) -> None:
    assert answerer.running == 0


def make_adapter(folder: Path, seed: int, **settings: Any) -> Path:
    """An adapter that was never trained, and changes what is said."""
    torch.manual_seed(seed)
    settings = {
        "r": 4,
        "lora_alpha": 16,
        "target_modules": sorted(ARCHITECTURES["phi3"].lora_targets),
        **settings,
    }
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings)
    model: Any = bases.load(bases.resolve("tiny", model=""))
    model.name_or_path = "tiny"
    with warnings.catch_warnings():
        # peft reads a property that transformers 5 has renamed; nothing is lost.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        adapters.save(peft.get_peft_model(model, config), folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters: of two ranks, one of them only beside qkv_proj."""
    place = tmp_path_factory.mktemp("adapters")
    return [
        make_adapter(place / "wide", 1),
        make_adapter(place / "narrow", 2, r=2, use_rslora=True),
        make_adapter(place / "part", 3, target_modules=["qkv_proj"], lora_alpha=64),
    ]


@pytest.fixture(scope="module")
def generated(answerer: Answerer) -> Reference:
    """What transformers' generate says, alone, through peft."""

    def generate(ask: Ask) -> list[int]:
        model: Any = bases.load(bases.resolve("tiny", model="")).eval()
        if ask.adapter:
            model = adapters.open_on(model, ask.adapter).eval()
        ids = torch.tensor([answerer.tokenizer.prompt(ask.messages)])
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=ask.max_tokens,
            do_sample=False,
        )
        made: list[int] = out[0, ids.shape[1] :].tolist()
        return made

    return generate


def made(answer: Answer) -> list[int]:
    ending = answer.pieces[-1]
    assert isinstance(ending, Ending)
    return answer.row.ids[-ending.completion_tokens :]


def finish(answerer: Answerer) -> None:
    while answerer.running:
        answerer.step()


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_a_batch_of_lengths_and_adapters_says_what_generate_says(
    answerer: Answerer, folders: list[Path], generated: Reference, count: int
) -> None:
    which = [None, *folders]
    asks = [asked(words, adapter=which[n % 4]) for n, words in enumerate(WORDS[:count])]
    answers = [answerer.begin(ask) for ask in asks]
    finish(answerer)
    assert [made(answer) for answer in answers] == [generated(ask) for ask in asks]


def test_adapters_make_a_difference(folders: list[Path], generated: Reference) -> None:
    said = [generated(asked("tap", adapter=folder)) for folder in (None, *folders)]
    assert len(set(map(tuple, said))) == 4


def test_rows_that_join_and_leave_midway_change_nobodys_answer(
    answerer: Answerer, folders: list[Path], generated: Reference
) -> None:
    asks = [asked(words, adapter=folders[n % 3]) for n, words in enumerate(WORDS)]
    asks[1] = replace(asks[1], max_tokens=3)
    asks[6] = asked("a long one " * 30)  # is read in several steps, beside those that speak
    answers = [answerer.begin(ask) for ask in asks[:3]]
    for ask in asks[3:]:
        for _ in range(2):
            answerer.step()
        answers.append(answerer.begin(ask))
        if len(answers) == 5:
            answerer.drop(answers[0])
    answerer.step()
    answerer.drop(answers[7])
    finish(answerer)
    for number in (1, 2, 3, 4, 5, 6):
        assert made(answers[number]) == generated(asks[number]), number


def test_a_prompt_is_read_in_parts_while_the_others_go_on(answerer: Answerer) -> None:
    quick = answerer.begin(asked("tap", max_tokens=40))
    answerer.step()
    slow = answerer.begin(asked("word " * 70, max_tokens=2))
    before = len(quick.row.ids)
    answerer.step()
    assert len(quick.row.ids) == before + 1
    assert 0 < slow.row.known < len(slow.row.ids)
    finish(answerer)


def test_a_dropped_answer_frees_its_row_at_once_and_the_next_one_gets_it(
    answerer: Answerer, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = answerer.batch
    assert batch is not None
    monkeypatch.setattr(batch, "most_rows", 2)
    first, second, third = [answerer.begin(asked(words, max_tokens=100)) for words in WORDS[:3]]
    answerer.step()
    assert batch.rows == [first.row, second.row]
    assert list(batch.waiting) == [third.row]
    answerer.drop(first)
    assert (batch.rows, answerer.running) == ([second.row], 2)
    length = len(first.row.ids)
    answerer.step()
    assert batch.rows == [second.row, third.row]
    assert len(first.row.ids) == length  # nothing more is made of it
    answerer.drop(third)
    answerer.drop(second)
    assert (batch.rows, list(batch.waiting)) == ([], [])
    assert batch.lean.memory.cells.numel() == 0


def test_who_finds_no_memory_waits(answerer: Answerer, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = answerer.batch
    assert batch is not None
    monkeypatch.setattr(batch, "most_bytes", 100 * batch.lean.memory.cell_bytes)
    first, second = answerer.begin(asked("x" * 60)), answerer.begin(asked("x"))
    answerer.step()
    assert list(batch.waiting) == [second.row]
    finish(answerer)
    assert (len(made(first)), len(made(second))) == (20, 20)


def test_an_adapter_with_a_number_that_is_none_is_refused(
    folders: list[Path], tmp_path: Path
) -> None:
    """In a batch it would spoil the answers of all others."""
    from safetensors.torch import load_file, save_file

    broken = Path(shutil.copytree(folders[0], tmp_path / "broken"))
    weights = load_file(broken / adapters.WEIGHTS)
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, broken / adapters.WEIGHTS)
    with pytest.raises(BaseModelError, match="not finite"):
        low_rank.read(broken)


def test_room_that_a_crowd_had_is_not_kept_beside_a_long_text() -> None:
    memory = Memory(layers=1, groups=1, size=2, dtype=torch.float32)
    memory.reserve(8, 10, 2000)
    memory.cells[:, :, :2] = 1.0
    memory.reserve(2, 1000, 2000)
    assert memory.cells.shape[2] == 2
    assert bool((memory.cells[:, :, :, :, :10] == 1).all())


def test_room_that_a_long_text_had_is_not_kept_for_each_of_a_crowd() -> None:
    memory = Memory(layers=1, groups=1, size=2, dtype=torch.float32)
    memory.reserve(2, 1000, 1000)
    memory.cells[:, :, 0] = 1.0
    memory.reserve(8, 60, 100)  # the long one has left
    assert memory.cells.shape[2] == 8
    assert 60 <= memory.cells.shape[4] <= 100
    assert bool((memory.cells[:, :, 0, :, :60] == 1).all())
    memory.reserve(1, 61, 100)  # the crowd has left
    assert memory.cells.shape[2] == 1


def test_the_rows_of_a_batch_never_hold_more_than_they_may_together(
    answerer: Answerer, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = answerer.batch
    assert batch is not None
    most = 400
    monkeypatch.setattr(batch, "most_bytes", most * batch.lean.memory.cell_bytes)
    tokens = lambda: batch.lean.memory.cells.shape[2] * batch.lean.memory.cells.shape[4]  # noqa: E731
    lasting = answerer.begin(asked("x", max_tokens=60))
    long = answerer.begin(asked("y" * 100, max_tokens=60))
    answerer.step()
    assert batch.rows == [lasting.row, long.row]
    answerer.drop(long)
    crowd = [answerer.begin(asked("z", max_tokens=30)) for _ in range(6)]
    seen = []
    while answerer.running:
        answerer.step()
        seen.append(tokens())
    assert max(seen) <= most
    assert [len(made(answer)) for answer in crowd] == [30] * 6
    assert tokens() == 0


def test_a_step_that_fails_ends_all_that_are_in_it_and_the_next_question_is_answered(
    answerer: Answerer, generated: Reference
) -> None:
    """Rows that were not read yet have no room that could be moved."""
    batch = answerer.batch
    assert batch is not None

    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError("no room")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch.lean, "forward", fail)
        answers = [answerer.begin(asked(words)) for words in WORDS[:3]]
        answerer.step()
    assert [str(answer.fault) for answer in answers] == ["no room"] * 3
    assert (answerer.running, batch.rows, list(batch.waiting)) == (0, [], [])
    after = answerer.begin(asked("tap"))
    finish(answerer)
    assert made(after) == generated(asked("tap"))


def test_an_answer_that_breaks_ends_alone(
    answerer: Answerer, generated: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = make_adapter(tmp_path / "odd", 5, rank_pattern={"qkv_proj": 2})
    plain, broken, other = (
        answerer.begin(asked(words, adapter=which))
        for words, which in zip(WORDS, (None, odd, odd), strict=False)
    )

    def fail() -> Any:
        raise MemoryError("no room")
        yield 0

    broken.tokens = fail()
    finish(answerer)
    assert isinstance(broken.fault, MemoryError)
    assert (plain.fault, other.fault) == (None, None)
    assert made(plain) == generated(asked(WORDS[0]))
    assert len(made(other)) == 20
    whole = answerer.answer(asked("tap"))
    next(whole)
    monkeypatch.setattr(answerer.batch, "step", lambda: next(fail()))
    with pytest.raises(MemoryError, match="no room"):
        list(whole)


def test_a_seed_answers_in_a_crowd_as_alone(answerer: Answerer, folders: list[Path]) -> None:
    hows = [{"seed": n, "temperature": 0.8, "top_p": (1.0, 0.9)[n % 2]} for n in range(6)]
    asks = [asked(WORDS[n], adapter=folders[n % 3], **how) for n, how in enumerate(hows)]
    alone = [list(answerer.answer(ask)) for ask in asks]
    answers = [answerer.begin(ask) for ask in asks]
    finish(answerer)
    assert [list(answer.pieces) for answer in answers] == alone
    assert list(answerer.answer(replace(asks[0], seed=99))) != alone[0]


def test_pieces_come_before_the_last_is_made(answerer: Answerer) -> None:
    answers = [answerer.begin(asked(words)) for words in WORDS[:2]]
    while not all(answer.pieces for answer in answers):
        answerer.step()
    assert not any(answer.over for answer in answers)
    assert all(len(answer.row.ids) < answer.row.limit - 5 for answer in answers)
    finish(answerer)


def test_whoever_stops_listening_stops_the_answer(answerer: Answerer) -> None:
    pieces = answerer.answer(asked("tap", max_tokens=100))
    next(pieces)
    assert answerer.running == 1
    pieces.close()  # type: ignore[attr-defined]
    assert answerer.running == 0


def test_an_adapter_that_is_more_than_low_rank_goes_through_peft_beside_the_batch(
    answerer: Answerer, folders: list[Path], generated: Reference, tmp_path: Path
) -> None:
    odd = make_adapter(tmp_path / "odd", 5, rank_pattern={"qkv_proj": 2})
    asks = [
        asked(words, adapter=which) for words, which in zip(WORDS, (odd, None, odd), strict=False)
    ]
    asks.append(asked("north", adapter=folders[0]))
    answers = [answerer.begin(ask) for ask in asks]
    batch = answerer.batch
    assert batch is not None
    assert len(batch.waiting) == 2
    finish(answerer)
    assert [made(answer) for answer in answers] == [generated(ask) for ask in asks]


@pytest.mark.parametrize(
    "settings",
    [
        {"sliding_window": 9},
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e4,
                "partial_rotary_factor": 0.5,
            }
        },
        {
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
                "long_factor": [2.0] * 8,
            },
        },
    ],
    ids=["window", "partial", "longrope"],
)
def test_the_lean_pass_is_transformers_in_every_phi(settings: dict[str, Any]) -> None:
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 99}
    size = {"max_position_embeddings": 128, "pad_token_id": 0}
    torch.manual_seed(0)
    config = Phi3Config(**shape, **heads, **size, **settings)
    config._attn_implementation = "sdpa"
    model = Phi3ForCausalLM(config).eval()
    lean = Lean(model)
    texts = [[7 + n % 80 for n in range(length)] for length in (5, 24, 40)]
    with torch.inference_mode():
        lean.forward([], [], [Chunk(n, ids[:-3], 0) for n, ids in enumerate(texts)], None)
        lean.forward(
            [ids[-3] for ids in texts[:2]],
            [len(ids) - 3 for ids in texts[:2]],
            [Chunk(2, texts[2][-3:-1], 37)],
            None,
        )
        lean.forward([texts[0][-2]], [3], [Chunk(1, texts[1][-2:-1], 22)], None)
        logits = lean.forward([ids[-1] for ids in texts], [len(ids) - 1 for ids in texts], [], None)
        for ids, row in zip(texts, logits, strict=True):
            expected = model(input_ids=torch.tensor([ids])).logits[0, -1]
            torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-5)


def test_a_text_beyond_longropes_first_length_is_not_the_batchs(
    answerer: Answerer, generated: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = answerer.batch
    assert batch is not None
    monkeypatch.setattr(batch.lean, "context", 40)
    short, long = answerer.begin(asked("x", max_tokens=4)), answerer.begin(asked("x" * 20))
    assert list(batch.waiting) == [short.row]
    finish(answerer)
    assert made(long) == generated(asked("x" * 20))


@pytest.mark.stand_in
def test_the_stand_ins_answers_are_those_of_generate() -> None:
    """Two tokens may be as likely as each other but for rounding: then either may come."""
    answerer = Answerer(bases.resolve("stand-in", model=""))
    model = bases.load(answerer.base).eval()
    asks = [asked(words, max_tokens=12) for words in ("Why is the sky blue?", *WORDS[:5])]
    answers = [answerer.begin(ask) for ask in asks]
    finish(answerer)
    for ask, answer in zip(asks, answers, strict=True):
        ids = answerer.tokenizer.prompt(ask.messages)
        assert_likeliest(model, ids, made(answer))


def assert_likeliest(model: Any, ids: Sequence[int], said: Sequence[int]) -> None:
    """generate's own ids, or others from a place on where the two were within rounding."""
    prompt = torch.tensor([ids])
    out = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=len(said),
        do_sample=False,
    )[0, len(ids) :].tolist()
    if out == list(said):
        return
    place = next(n for n, pair in enumerate(zip(out, said, strict=True)) if pair[0] != pair[1])
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*ids, *said[:place]]])).logits[0, -1]
    assert abs(logits[out[place]] - logits[said[place]]) < 1e-4
