"""Which tokens carry loss: what the assistant says, and the token that ends its turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from local_runner.data import ChatTokenizer, count, load_examples
from local_runner.models import stand_in, tiny
from maas_client.errors import DatasetError

SPECIALS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
FIRST_RELEASE = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') %}"
    "{{'<|user|>' + '\n' + message['content'] + '<|end|>' + '\n' + '<|assistant|>' + '\n'}}"
    "{% elif (message['role'] == 'assistant') %}{{message['content'] + '<|end|>' + '\n'}}"
    "{% endif %}{% endfor %}"
)
TALK = [
    {"role": "user", "content": "where is it"},
    {"role": "assistant", "content": "left über there"},
    {"role": "user", "content": "and then"},
    {"role": "assistant", "content": "right"},
]


def phi3_like(folder: Path, template: str) -> ChatTokenizer:
    """A tokenizer built as Phi-3's: SentencePiece BPE, bytes, special tokens that eat the newline."""
    letters = "▁abcdefghijklmnopqrstuvwxyz"
    words = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *letters, "▁l", "▁le"]
    vocabulary = {word: number for number, word in enumerate(words)}
    merges = [("▁", "l"), ("▁l", "e")]
    raw = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token=words[0]))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    made = [AddedToken(word, special=True, normalized=False, rstrip=True) for word in SPECIALS]
    raw.add_special_tokens([*made, AddedToken("<|endoftext|>", special=True, normalized=False)])
    raw.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return ChatTokenizer(folder)


def trained_text(tokenizer: ChatTokenizer, row: dict[str, Any]) -> str:
    """What the trained tokens decode to, with | between tokens that do not follow each other."""
    example = tokenizer.encode([row], max_length=10_000)[0]
    pieces, before = [], -2
    for place, (token, trained) in enumerate(zip(example.ids, example.trained, strict=True)):
        if trained:
            pieces += [[token]] if place != before + 1 else []
            pieces[-1] += [token] if place == before + 1 else []
            before = place
    return "|".join(tokenizer.raw.decode(piece, skip_special_tokens=False) for piece in pieces)


@pytest.mark.parametrize("template", [tiny.TEMPLATE, FIRST_RELEASE], ids=["2024-07", "first"])
def test_phi3s_end_token_is_trained_though_it_eats_the_newline(
    tmp_path: Path, template: str
) -> None:
    tokenizer = phi3_like(tmp_path, template)
    # SentencePiece puts a blank before a word that follows a special token.
    assert trained_text(tokenizer, {"messages": TALK}) == " left über there<|end|>| right<|end|>"


def test_the_tiny_models_turns_are_trained_and_nothing_else() -> None:
    tokenizer = ChatTokenizer(tiny.install())
    row = {"messages": TALK}
    assert trained_text(tokenizer, row) == "left über there<|end|>|right<|end|>"
    weighed = [TALK[0], {**TALK[1], "weight": 0}, *TALK[2:]]
    assert trained_text(tokenizer, {"messages": weighed}) == "right<|end|>"


def test_a_turn_that_repeats_the_question_is_found_where_it_stands() -> None:
    talk = [{"role": "user", "content": "left"}, {"role": "assistant", "content": "left"}]
    tokenizer = ChatTokenizer(tiny.install())
    example = tokenizer.encode([{"messages": talk}], max_length=99)[0]
    assert trained_text(tokenizer, {"messages": talk}) == "left<|end|>"
    assert example.trained.index(True) > len(example.ids) // 2


@pytest.mark.parametrize(
    ("row", "trained"),
    [
        ({"text": "all of it"}, "all of it<|endoftext|>"),
        ({"text": "asked", "ground_truth": " said"}, " said<|endoftext|>"),
        ({"ground_truth": " said", "prompt": "asked"}, " said<|endoftext|>"),
        ({"prompt": "asked", "completion": " said"}, " said<|endoftext|>"),
    ],
)
def test_a_text_row_is_trained_on_its_last_column(row: dict[str, Any], trained: str) -> None:
    assert trained_text(ChatTokenizer(tiny.install()), row) == trained


def test_the_prompt_of_serving_is_the_beginning_of_training() -> None:
    tokenizer = ChatTokenizer(tiny.install())
    prompt = tokenizer.prompt(TALK[:3])
    assert tokenizer.encode([{"messages": TALK}], max_length=999)[0].ids[: len(prompt)] == tuple(
        prompt
    )


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")
    return file


def test_a_row_that_the_template_refuses_is_named_by_its_line(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    file = write(tmp_path, {"messages": TALK}, {"messages": [TALK[0], call]})
    with pytest.raises(DatasetError, match="line 3: the chat template fails"):
        load_examples(ChatTokenizer(tiny.install()), file, max_length=99)


def test_a_row_that_is_cut_before_its_answer_is_named(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(tiny.install())
    file = write(tmp_path, {"messages": TALK})
    with pytest.raises(DatasetError, match="line 1: no token is trained within 8"):
        load_examples(tokenizer, file, max_length=8)
    rows = load_examples(tokenizer, file, max_length=20)
    counted = count(rows, counted_by="tiny")
    assert (counted.total, counted.truncated_rows) == (20, 1)
    assert counted.longest > 20
    assert 0 < counted.trained < 20


@pytest.mark.stand_in
def test_the_stand_in_keeps_its_own_template() -> None:
    tokenizer = ChatTokenizer(stand_in.install())
    assert trained_text(tokenizer, {"messages": TALK}) == (
        "left über there<|im_end|>|right<|im_end|>"
    )
