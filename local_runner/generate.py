"""Answers with a base and its adapters: one token after another, with a KV cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from local_runner import adapters
from local_runner.data import ChatTokenizer
from local_runner.models import base as bases
from maas_client.errors import RunnerError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Phi3ForCausalLM

_HALF = "\ufffd"
"""What half a character decodes to."""


@dataclass(frozen=True, slots=True)
class Ask:
    """How an answer is to be made."""

    messages: Sequence[Mapping[str, Any]]
    adapter: Path | None = None
    max_tokens: int = 256
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ending:
    """How an answer ended."""

    finish_reason: str
    """`stop`, or `length` where max_tokens or the context cut it."""
    prompt_tokens: int
    completion_tokens: int


class Answerer:
    """A base loaded once, with adapters that are switched per question."""

    def __init__(self, base: bases.Base) -> None:
        self.base = base
        self.tokenizer = ChatTokenizer(base.folder)
        self._plain: Phi3ForCausalLM = bases.load(base).eval()
        self._adapted: PeftModel | None = None
        self._known: dict[tuple[Path, int], str] = {}
        ends = self._plain.generation_config.eos_token_id
        self._ends = frozenset([ends] if isinstance(ends, int) else ends or [self.tokenizer.eos_id])
        self._context = int(bases.read_config(base.folder)["max_position_embeddings"])

    def answer(self, ask: Ask) -> Iterator[str | Ending]:
        """Pieces of text as they are made, and at last how it ended.

        Raises:
            BaseModelError: the adapter cannot be loaded.
            RunnerError: the question is longer than the context.
        """
        prompt = self.tokenizer.prompt(ask.messages)
        room = self._context - len(prompt)
        if room < 1:
            raise RunnerError(
                f"the question has {len(prompt)} tokens; the model's context is {self._context}"
            )
        model, mode = self._with(ask.adapter)
        limit = min(ask.max_tokens, room)
        with torch.inference_mode(), mode:
            yield from self._pieces(self._ids(model, prompt, ask, limit), ask.stop, len(prompt))

    def _pieces(
        self, ids: Iterator[int], stop: Sequence[str], prompt_tokens: int
    ) -> Iterator[str | Ending]:
        made: list[int] = []
        text, sent, reason = "", 0, "length"
        for token in ids:
            made.append(token)
            if token in self._ends:
                reason = "stop"
                break
            text = self.tokenizer.raw.decode(made, skip_special_tokens=True)
            found = [at for word in stop if (at := text.find(word)) >= 0]
            if found:
                text, reason = text[: min(found)], "stop"
                break
            # What may turn out to be a stop word, or the other half of a character, waits.
            if not text.endswith(_HALF) and not _may_become(text, stop):
                yield text[sent:]
                sent = len(text)
        if len(text) > sent:
            yield text[sent:]
        yield Ending(reason, prompt_tokens, len(made))

    def _ids(self, model: Any, prompt: list[int], ask: Ask, limit: int) -> Iterator[int]:
        from transformers import DynamicCache

        cache = DynamicCache()
        dice = torch.Generator()
        dice.manual_seed(ask.seed) if ask.seed is not None else dice.seed()
        ids = torch.tensor([prompt])
        for _ in range(limit):
            out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            token = _choose(out.logits[0, -1].float(), ask, dice)
            yield token
            ids = torch.tensor([[token]])

    def _with(self, adapter: Path | None) -> tuple[Any, AbstractContextManager[None]]:
        """The model to ask, and the mode to ask it in."""
        if adapter is None:
            if self._adapted is None:
                return self._plain, nullcontext()
            return self._adapted, self._adapted.disable_adapter()
        self._adapted = self._load(adapter)
        return self._adapted, nullcontext()

    def _load(self, adapter: Path) -> PeftModel:
        file = adapter / adapters.WEIGHTS
        # An adapter that was trained again under the same path is another one.
        key = (adapter, file.stat().st_mtime_ns if file.exists() else 0)
        name = self._known.get(key)
        model: Any = self._adapted or self._plain
        if name is None:
            name = f"adapter{len(self._known)}"
            model = adapters.open_on(model, adapter, name=name).eval()
            self._known[key] = name
        model.set_adapter(name)
        return model


def _may_become(text: str, stops: Sequence[str]) -> bool:
    """Whether the text ends with the beginning of a stop word."""
    return any(text.endswith(word[:n]) for word in stops for n in range(1, len(word)))


def _choose(logits: torch.Tensor, ask: Ask, dice: torch.Generator) -> int:
    """The next token. logits: [vocabulary]."""
    if ask.temperature <= 0:
        return int(logits.argmax())
    chances, order = torch.softmax(logits / ask.temperature, 0).sort(descending=True, stable=True)
    # Keep the fewest tokens that reach top_p together; the first always stays.
    cut = (chances.cumsum(0) - chances) >= ask.top_p
    cut[0] = False
    return int(order[torch.multinomial(chances.masked_fill(cut, 0), 1, generator=dice)])
