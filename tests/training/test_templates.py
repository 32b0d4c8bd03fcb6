"""Every template family: nothing is trained but what the assistant says and the token that ends it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from local_runner.data import ChatTokenizer, count, load_examples
from local_runner.preview import preview
from maas_client.errors import BaseModelError, DatasetError
from maas_client.spec.catalog_file import template

ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
TOOLS = ("<|tool|>", "<|/tool|>", "<|tool_call|>", "<|/tool_call|>")
SPECIALS = {
    "phi-3-mini": ROLES,
    "phi-3-medium": ROLES,
    "phi-3-small": ROLES,
    "phi-3.5": ROLES,
    "phi-4-mini": (*ROLES, *TOOLS),
    "phi-4": ("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
}
FAMILIES = tuple(SPECIALS)
SENTENCEPIECE = ("phi-3-mini", "phi-3-medium", "phi-3.5")
"""Their special tokens take the white space behind them along."""
ABC = "abcdefghijklmnopqrstuvwxyz .?"


def sentencepiece() -> Tokenizer:
    """As Phi-3-mini's: a blank before each piece, bytes for what is unknown."""
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{n:02X}>" for n in range(256)),
        "▁",
        *ABC.replace(" ", ""),
    ]
    vocabulary = {word: number for number, word in enumerate([*words, "▁l", "▁le", "th"])}
    merges = [("▁", "l"), ("▁l", "e"), ("t", "h")]
    raw = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token=words[0]))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return raw


def byte_level() -> Tokenizer:
    """As Phi-3-small's and Phi-4-mini's: bytes, and merges across line breaks."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("t", "h"), ("Ġ", "th")]
    vocabulary = {word: number for number, word in enumerate([*letters, "ĊĊ", "th", "Ġth"])}
    raw = Tokenizer(models.BPE(vocabulary, merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return raw


def end_of(family: str) -> str:
    return "<|im_end|>" if family == "phi-4" else "<|end|>"


def write_family(family: str, folder: Path) -> Path:
    eats = family in SENTENCEPIECE
    raw = sentencepiece() if eats else byte_level()
    raw.add_special_tokens(
        [
            *(
                AddedToken(word, special=True, normalized=False, rstrip=eats)
                for word in SPECIALS[family]
            ),
            AddedToken("<|endoftext|>", special=True, normalized=False),
        ]
    )
    folder.mkdir(parents=True, exist_ok=True)
    raw.save(str(folder / "tokenizer.json"))
    bos = "<s>" if eats else "<|endoftext|>"
    config = {"bos_token": bos, "eos_token": "<|endoftext|>", "chat_template": template(family)}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    stops = [raw.token_to_id(end_of(family)), raw.token_to_id("<|endoftext|>")]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    return folder


Open = Callable[..., ChatTokenizer]


@pytest.fixture(scope="module")
def open_family(tmp_path_factory: pytest.TempPathFactory) -> Open:
    root = tmp_path_factory.mktemp("families")
    folders = {family: write_family(family, root / family) for family in FAMILIES}
    return lambda family, **options: ChatTokenizer(folders[family], **options)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


INSIDE = st.text(st.sampled_from(ABC + "\n\tÄß日🙂<|>"), min_size=1, max_size=12).filter(str.strip)
WORDS = st.builds(str.__add__, st.sampled_from(("", " ", "\n\n", "\n")), INSIDE)
PAIRS = st.lists(st.tuples(WORDS, WORDS, st.sampled_from((0, 1, None))), min_size=1, max_size=4)


def trained_runs(tokenizer: ChatTokenizer, row: dict[str, Any]) -> list[tuple[list[int], str]]:
    """Each unbroken run of trained tokens: their ids, and the text that they stand for."""
    drawn = tokenizer.draw(row)
    [(ids, _)] = tokenizer.code([drawn])
    example = tokenizer.encode([row], max_length=100_000)[0]
    assert example.ids == tuple(ids)
    runs: list[list[int]] = []
    for place, trained in enumerate(example.trained):
        if trained and place and example.trained[place - 1]:
            runs[-1].append(place)
        elif trained:
            runs.append([place])
    decode = tokenizer.raw.decode
    return [(run, decode([ids[place] for place in run], skip_special_tokens=False)) for run in runs]


@settings(max_examples=60, deadline=None)
@given(family=st.sampled_from(FAMILIES), pairs=PAIRS, opening=st.none() | WORDS)
def test_only_answers_and_their_ends_are_trained(
    open_family: Open, family: str, pairs: list[tuple[str, str, int | None]], opening: str | None
) -> None:
    tokenizer = open_family(family)
    talk = [system(opening)] if opening else []
    for question, answer, weight in pairs:
        talk += [user(question), said(answer, **({} if weight is None else {"weight": weight}))]
    eats = family in SENTENCEPIECE
    right = [answer + end_of(family) for _, answer, weight in pairs if weight != 0]
    found = trained_runs(tokenizer, {"messages": talk})
    texts = [text for _, text in found]
    if eats:
        # <|assistant|> takes leading white space along, in serving, too; SentencePiece begins a piece
        # with a blank, which is not a character of the answer.
        assert [text.removeprefix(" ") for text in texts] == [text.lstrip() for text in right]
    else:
        assert texts == right


@pytest.mark.parametrize("family", FAMILIES)
def test_serving_asks_with_the_tokens_that_training_saw(open_family: Open, family: str) -> None:
    tokenizer = open_family(family)
    talk = [system("be brief"), user("where\n\n"), said("there"), user("the end"), said("\n\nthen")]
    ids = tokenizer.encode([{"messages": talk}], max_length=999)[0].ids
    for turns in (2, 4):
        prompt = tokenizer.prompt(talk[:turns])
        assert ids[: len(prompt)] == tuple(prompt)


def test_a_system_turn_that_would_be_dropped_is_refused_or_folded(
    open_family: Open, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [[user("where"), said("there")], [system("be brief"), user("where"), said("there")]]
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    with pytest.raises(DatasetError) as refused:
        load_examples(open_family("phi-3-medium", system_turns="refuse"), file, max_length=99)
    [problem] = refused.value.problems
    assert problem.line == 2
    assert "system turn" in problem.message
    assert "system_turns: fold" in problem.hint

    folding = open_family("phi-3-medium")
    assert "<|user|>\nbe brief\n\nwhere<|end|>" in folding.draw({"messages": rows[1]}).text
    counted = count(load_examples(folding, file, max_length=99), counted_by="")
    assert (counted.system_rows.count, counted.system_rows.first) == (1, (2,))
    kept = load_examples(open_family("phi-3-mini", system_turns="refuse"), file, max_length=99)
    assert count(kept, counted_by="").system_rows.count == 0


CALL = {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"what": "tap"}'}}
TOOL = {"type": "function", "function": {"name": "find", "description": "d", "parameters": {}}}
ERRAND = [
    user("where"),
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "left"},
    said("on the left"),
]


def test_phi_4_mini_is_trained_to_call_tools(open_family: Open) -> None:
    tokenizer = open_family("phi-4-mini")
    row = {"messages": ERRAND, "tools": [TOOL]}
    text = tokenizer.draw(row).text
    listed = '[{"name": "find", "description": "d", "parameters": {}}]'
    assert text.startswith(f"<|system|><|tool|>{listed}<|/tool|><|end|><|user|>where<|end|>")
    assert "<|tool|>left<|end|>" in text
    assert [run for _, run in trained_runs(tokenizer, row)] == [
        '<|tool_call|>[{"name": "find", "arguments": {"what": "tap"}}]<|/tool_call|><|end|>',
        "on the left<|end|>",
    ]
    with_system = {"messages": [system("be brief"), *ERRAND], "tools": [TOOL]}
    assert tokenizer.draw(with_system).text.startswith(f"<|system|>be brief<|tool|>{listed}")
    bad = {**CALL, "function": {"name": "find", "arguments": "{what"}}
    with pytest.raises(ValueError, match="the arguments of find are no JSON"):
        tokenizer.draw({"messages": [ERRAND[0], {**ERRAND[1], "tool_calls": [bad]}]})


def test_a_template_that_writes_tools_itself_is_given_them(tmp_path: Path) -> None:
    folder = write_family("phi-4-mini", tmp_path)
    source = (
        "{% if tools %}{{ '<|tool|>' + tools | tojson + '<|/tool|>' }}{% endif %}"
        "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
        "{% for call in message.tool_calls or [] %}"
        "{{ '<|tool_call|>' + call.function | tojson + '<|/tool_call|>' }}"
        "{% endfor %}{{ '<|end|>' }}{% endfor %}"
    )
    (folder / "chat_template.jinja").write_text(source)
    tokenizer = ChatTokenizer(folder)
    row = {"messages": ERRAND, "tools": [TOOL]}
    assert tokenizer.draw(row).text.startswith(f"<|tool|>{json.dumps([TOOL])}<|/tool|><|user|>")
    assert [run for _, run in trained_runs(tokenizer, row)] == [
        '<|tool_call|>{"name": "find", "arguments": {"what": "tap"}}<|/tool_call|><|end|>',
        "on the left<|end|>",
    ]


@pytest.mark.parametrize(
    ("family", "row", "why"),
    [
        (
            "phi-3-mini",
            {"messages": ERRAND[:1] + ERRAND[3:], "tools": [TOOL]},
            "no place for tools",
        ),
        ("phi-3-small", {"messages": ERRAND}, "no place for tool_calls"),
        ("phi-3-mini", {"messages": [*ERRAND[:1], said("x"), *ERRAND[2:]]}, "leaves it out"),
        ("phi-3-small", {"messages": [*ERRAND[:1], said("x"), *ERRAND[2:]]}, r"writes <\|tool\|>"),
    ],
)
def test_what_a_template_cannot_say_of_tools_is_refused_by_name(
    open_family: Open, family: str, row: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        open_family(family).draw(row)


def test_a_template_that_is_not_jinja_is_named_by_its_folder(tmp_path: Path) -> None:
    folder = write_family("phi-3-mini", tmp_path / "family")
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(BaseModelError, match="family: the chat template is not Jinja"):
        ChatTokenizer(folder)


def test_peculiar_rows_are_counted_with_their_lines(tmp_path: Path) -> None:
    folder = write_family("phi-3-mini", tmp_path / "family")
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    file = tmp_path / "rows.jsonl"
    rows = [
        [user("where"), said("there")],
        [user("what is <|end|>"), said("an end")],
        [user("where"), said("there"), user("and then"), said("a long way to the left")],
    ]
    file.write_text("\n".join(json.dumps({"messages": row}) for row in rows) + "\n")
    counted = count(load_examples(ChatTokenizer(folder), file, max_length=32), counted_by="")
    assert counted.spelled.first == (2,)
    assert (counted.cut_answers.first, counted.truncated_rows) == ((3,), 1)
    assert counted.deaf_ends.count == 3  # <|end|> is not in eos_token_id
    assert counted.open_ends.count == 0

    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = config["chat_template"].replace("<|end|>", "")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    counted = count(load_examples(ChatTokenizer(folder), file, max_length=99), counted_by="")
    assert counted.open_ends.first == (1, 2, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_preview_shows_every_character_once_and_what_is_trained(
    open_family: Open, tmp_path: Path, family: str
) -> None:
    file = tmp_path / "rows.jsonl"
    talk = [user("wo ist 日本?"), said("dort 🙂 drüben"), user("ach"), said("ja")]
    file.write_text("\n\n" + json.dumps({"messages": talk}) + "\n" + json.dumps({"messages": talk}))
    tokenizer = open_family(family)
    options: dict[str, Any] = {"task": "chat_completion", "max_length": 20}
    [row] = preview(tokenizer, file, count=1, **options)
    assert (row["line"], row["cut"], row["notes"]) == (3, 20, ["cut answer"])
    assert (
        "".join(token["text"] for token in row["tokens"]) == tokenizer.draw({"messages": talk}).text
    )
    learned = "".join(token["text"] for token in row["tokens"] if token["trained"])
    eaten = "\n" if family in SENTENCEPIECE else ""
    end = end_of(family)
    assert learned == f"dort 🙂 drüben{end}{eaten}ja{end}{eaten}"
    assert [token["text"].strip() for token in row["tokens"] if token["end"]] == [end] * 2
    assert [row["line"] for row in preview(tokenizer, file, count=9, line=4, **options)] == [4]
    with pytest.raises(DatasetError, match="no row from line 9"):
        preview(tokenizer, file, count=1, line=9, **options)
