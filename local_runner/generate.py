"""Answers with a base and its adapters, many at once: one process, one base, a forward pass for all."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from local_runner import adapters, lean, low_rank
from local_runner.batching import Batch, Row
from local_runner.data import ChatTokenizer
from local_runner.methods import prompts
from local_runner.models import base as bases
from local_runner.models.family import steady_context
from local_runner.speech import Ending, Speech
from maas_client.errors import RunnerError

if TYPE_CHECKING:
    from torch import Tensor

Piece = str | Ending
Key = tuple[Path, int]
"""An adapter's folder and when it was written: trained again under the same path, it is another one."""
_KEPT_ADAPTERS = 32
_FIRST_LOOK = 1024
"""Among how many tokens top_p is looked for before all are sorted."""


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


@dataclass(eq=False, slots=True)
class Answer:
    """An answer that is being made; its pieces are taken from the left."""

    speech: Speech
    row: Row
    key: Key | None = None
    """The adapter, where peft has to apply it."""
    pieces: deque[Piece] = field(default_factory=deque)
    over: bool = False
    tokens: Iterator[int] | None = None
    """Where they come from, where the batch does not make them."""
    fault: Exception | None = None
    """Why it broke off."""


class Answerer:
    """A base loaded once. Answers are begun, and each step carries all of them on by a token.

    What the batch cannot do, which is any adapter but a plain LoRA, goes through peft, one answer after
    another.
    """

    def __init__(self, base: bases.Base) -> None:
        self.base = base
        self.tokenizer = ChatTokenizer(base.folder, model=base.model)
        self._plain: Any = bases.load(base).eval()
        self._adapted: Any = None
        self._kind = ""
        """The method of the adapters that peft holds."""
        self._names: dict[Key, str] = {}
        self._whole: tuple[Key, Any] | None = None
        """A model all of whose weights were trained; one at a time."""
        self._loras: OrderedDict[Key, low_rank.Lora | None] = OrderedDict()
        self._ends = self.tokenizer.stops
        self._context = int(bases.read_config(base.folder)["max_position_embeddings"])
        self.batch = Batch(lean.Lean(self._plain)) if lean.serves(self._plain) else None
        self._in_batch: dict[Row, Answer] = {}
        self._apart: deque[Answer] = deque()

    @property
    def running(self) -> int:
        """Answers that are begun and not over."""
        return len(self._in_batch) + len(self._apart)

    def take_up(self, adapter: Path) -> None:
        """Read an adapter before anybody asks; the errors are those of `answer`."""
        self._lora(_key(adapter))

    def answer(self, ask: Ask) -> Iterator[Piece]:
        """Pieces of text as they are made, and at last how it ended.

        Raises:
            BaseModelError: the adapter cannot be loaded.
            RunnerError: the question is longer than the context.
        """
        answer = self.begin(ask)
        try:
            while answer.pieces or not answer.over:
                if answer.pieces:
                    yield answer.pieces.popleft()
                else:
                    self.step()
            if answer.fault is not None:
                raise answer.fault
        finally:
            self.drop(answer)

    def begin(self, ask: Ask) -> Answer:
        """Take a question in; the errors are those of `answer`."""
        prompt = self.tokenizer.prompt(ask.messages)
        room = self._context - len(prompt)
        if room < 1:
            raise RunnerError(
                f"the question has {len(prompt)} tokens; the model's context is {self._context}"
            )
        limit = min(ask.max_tokens, room)
        key = None if ask.adapter is None else _key(ask.adapter)
        lora = None if key is None else self._lora(key)
        speech = Speech(
            self.tokenizer.raw,
            ends=self._ends,
            stop=ask.stop,
            prompt_tokens=len(prompt),
            limit=limit,
        )
        answer = Answer(speech, Row(prompt, len(prompt) + limit, _chooser(ask), lora), key)
        if limit < 1:
            answer.over = True
            answer.pieces.append(Ending("length", len(prompt), 0))
            return answer
        self._admit(answer)
        return answer

    def _admit(self, answer: Answer) -> None:
        """Into the batch, or into the line of those that peft answers."""
        key, lora = answer.key, answer.row.lora
        fits = self.batch is not None and answer.row.limit <= self.batch.lean.context
        if self.batch is not None and fits and (key is None or lora is not None):
            self._in_batch[answer.row] = answer
            self.batch.join(answer.row)
        else:
            answer.tokens = self._tokens(answer)
            if key is not None:
                self._bring(key)
            self._apart.append(answer)

    def step(self) -> None:
        """Carry every answer on by a token; of those apart, the first. What fails ends its own."""
        if self.batch is not None and self._in_batch:
            try:
                made = self.batch.step()
            except Exception as error:  # noqa: BLE001 - no memory, say: each of them hears of it
                made = []
                for answer in list(self._in_batch.values()):
                    self._break_off(answer, error)
            for row, token in made:
                self._hear(self._in_batch[row], token)
        if self._apart:
            answer = self._apart[0]
            assert answer.tokens is not None  # noqa: S101 - begin gave them
            try:
                self._hear(answer, next(answer.tokens))
            except Exception as error:  # noqa: BLE001 - the same
                self._break_off(answer, error)

    def drop(self, answer: Answer) -> None:
        """Make no more of it, and free what it holds."""
        answer.over = True
        if self._in_batch.pop(answer.row, None) is not None and self.batch is not None:
            self.batch.leave(answer.row)
        elif answer in self._apart:
            self._apart.remove(answer)

    def _break_off(self, answer: Answer, error: Exception) -> None:
        answer.fault = error
        self.drop(answer)

    def _hear(self, answer: Answer, token: int) -> None:
        answer.pieces.extend(answer.speech.hear(token))
        if answer.pieces and isinstance(answer.pieces[-1], Ending):
            self.drop(answer)

    def _tokens(self, answer: Answer) -> Iterator[int]:
        """The tokens of an answer apart, by transformers' own forward pass and cache."""
        from transformers import DynamicCache

        row, cache = answer.row, DynamicCache()
        ids, choose = row.ids, row.choose or _likeliest
        steady = steady_context(self._plain.config)
        while True:
            if 0 < cache.get_seq_length() <= steady < len(row.ids):
                # All places are turned otherwise from here on: what is remembered does not go with it.
                ids, cache = row.ids, DynamicCache()
            model, mode = self._with(answer.key)
            with torch.inference_mode(), mode:
                out = prompts.answer_on(model, torch.tensor([ids]), cache)
            cache = out.past_key_values
            token = choose(out.logits[0, -1].float())
            row.ids.append(token)
            yield token
            ids = [token]

    def _with(self, key: Key | None) -> tuple[Any, AbstractContextManager[None]]:
        """The model to ask, and the mode to ask it in."""
        if key is not None:
            return self._bring(key), nullcontext()
        if self._adapted is None:
            return self._plain, nullcontext()
        return self._adapted, self._adapted.disable_adapter()

    def _bring(self, key: Key) -> Any:
        """The model with what was trained; it is loaded where it was not."""
        folder = key[0]
        if adapters.is_whole(folder):
            if self._whole is None or self._whole[0] != key:
                self._whole = (key, adapters.open_on(self._plain, folder).eval())
            return self._whole[1]
        if key not in self._names:
            self._make_room(adapters.kind_of(folder))
            name = f"adapter{len(self._names)}"
            model: Any = self._adapted or self._plain
            self._adapted = adapters.open_on(model, folder, name=name).eval()
            self._names[key] = name
        assert self._adapted is not None  # noqa: S101 - the name says that it is loaded
        self._adapted.set_adapter(self._names[key])
        return self._adapted

    def _make_room(self, kind: str) -> None:
        """peft holds adapters of one method at a time: let go of those of another."""
        if self._adapted is not None and self._kind != kind:
            self._plain = adapters.release(self._plain, self._adapted)
            self._adapted = None
            self._names.clear()
        self._kind = kind

    def _lora(self, key: Key) -> low_rank.Lora | None:
        if key not in self._loras:
            adapters.check(self._adapted or self._plain, key[0])
            self._loras[key] = None if adapters.is_whole(key[0]) else low_rank.read(key[0])
            if len(self._loras) > _KEPT_ADAPTERS:
                self._loras.popitem(last=False)
        self._loras.move_to_end(key)
        return self._loras[key]


def _key(adapter: Path) -> Key:
    file = adapter / (adapters.WHOLE if adapters.is_whole(adapter) else adapters.WEIGHTS)
    return adapter, file.stat().st_mtime_ns if file.exists() else 0


def _likeliest(logits: Tensor) -> int:
    return int(logits.argmax())


def _chooser(ask: Ask) -> Callable[[Tensor], int] | None:
    """How the next token is chosen, with dice of its own: a seed answers alone as in a crowd."""
    if ask.temperature <= 0:
        return None
    dice = torch.Generator()
    dice.manual_seed(ask.seed) if ask.seed is not None else dice.seed()
    return lambda logits: draw(logits / ask.temperature, ask.top_p, dice)


def draw(logits: Tensor, top_p: float, dice: torch.Generator) -> int:
    """A token by its chance, among the fewest that reach top_p together. logits: [vocabulary]."""
    chances = torch.softmax(logits, 0)
    point = float(torch.rand((), generator=dice, dtype=torch.float64))
    if top_p >= 1:
        return _at(chances, point)
    # Sorting a whole vocabulary takes longer than a small model's layer; the likely ones are few.
    most = min(_FIRST_LOOK, len(chances))
    likely, order = chances.topk(most)
    if float(likely.sum()) < top_p and most < len(chances):
        likely, order = chances.sort(descending=True, stable=True)
    kept = (likely.cumsum(0) - likely) < top_p
    kept[0] = True  # the first always stays
    return int(order[_at(likely[kept], point)])


def _at(chances: Tensor, point: float) -> int:
    """Where a point from 0 to 1 falls, when the chances lie end to end."""
    ends = chances.double().cumsum(0)
    place = int(torch.searchsorted(ends, point * float(ends[-1]), right=True))
    return min(place, len(ends) - 1)
