"""The stand-in is SmolLM2, exactly: weights, tokenizer and answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from local_runner.data import ChatTokenizer
from local_runner.generate import Answerer, Ask
from local_runner.models import base as bases
from local_runner.models import stand_in

pytestmark = [pytest.mark.stand_in, pytest.mark.timeout(600)]

TEXTS = (
    "What is the capital of France? It's 12,345 km² — naïve “quotes” and\n\n  spaces.",
    "def f(x):\n\treturn x ** 2  # ünïcödé 你好 🙂 don't I'll we've",
)


@pytest.fixture(scope="module")
def theirs() -> tuple[Any, Any]:
    """The same file, loaded by transformers as a Llama (this takes most of a minute)."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    file = stand_in.gguf_file()
    place: dict[str, Any] = {"gguf_file": file.name}
    model = LlamaForCausalLM.from_pretrained(file.parent, dtype="float32", **place)
    return model.eval(), AutoTokenizer.from_pretrained(file.parent, **place)


@pytest.mark.filterwarnings("ignore")  # transformers' GGUF reader warns about itself
def test_logits_and_tokens_are_those_of_transformers_own_reader(theirs: tuple[Any, Any]) -> None:
    model, tokenizer = theirs
    base = bases.resolve("stand-in", model="")
    ours, own = bases.load(base).eval(), ChatTokenizer(base.folder)
    for text in TEXTS:
        ids = own.raw.encode(text, add_special_tokens=False).ids
        assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert own.raw.decode(ids) == text
        with torch.no_grad():
            one, two = (m(input_ids=torch.tensor([ids])).logits for m in (ours, model))
        assert float((one - two).abs().max()) < 1e-5
    talk = [{"role": "user", "content": TEXTS[0]}, {"role": "assistant", "content": TEXTS[1]}]
    assert own.render(talk) == tokenizer.apply_chat_template(talk, tokenize=False)
    assert own.prompt(talk[:1]) == tokenizer.apply_chat_template(
        talk[:1], add_generation_prompt=True, return_dict=False
    )


def test_it_knows_something_and_stops() -> None:
    answerer = Answerer(bases.resolve("stand-in", model=""))
    question = [{"role": "user", "content": "What is the capital of France?"}]
    *pieces, ending = answerer.answer(Ask(question, max_tokens=40))
    assert "Paris" in "".join(map(str, pieces))
    assert getattr(ending, "finish_reason", None) == "stop"


def test_its_folder_says_where_it_comes_from(own_home: Path) -> None:
    assert stand_in.install() == own_home / "stand-in"
    assert "not a Phi model" in bases.resolve("stand-in", model="").info.label
