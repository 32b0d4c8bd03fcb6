"""How likely a model thinks each of several answers is: the sum of its tokens' log-probabilities.

What texts share is computed once. What all questions begin with (a primer, a template's first tokens) is
kept as keys and values; then questions lie end to end in one row without padding, each as its own words
followed by its answers side by side, and a mask says who sees whom: an answer sees its question and itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from local_runner.data import Example
from local_runner.evaluate import answer_logits, pad

if TYPE_CHECKING:
    from torch import Tensor

    _Begun = Sequence[tuple[Tensor, Tensor]]

MOST_TOKENS = 768
"""In one pass. The mask grows with the square; fewer tokens leave matrices too small to be quick."""
_HEAD_ROWS = 256
"""Predictions whose logits exist at once: [rows, vocabulary] in fp32 is the largest tensor here."""
_PACKED = ("phi3",)
"""Architectures that take places and a mask of our own as they are; Phi-3-small has a pattern of its own."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A text whose end is scored."""

    ids: tuple[int, ...]
    first: int
    """The first token that counts; at least 1."""


@dataclass(frozen=True, slots=True)
class _Question:
    """Choices as a trunk that they share, and a branch each."""

    number: int
    trunk: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    skipped: tuple[int, ...]
    """How many tokens at a branch's beginning do not count."""

    @property
    def tokens(self) -> int:
        return len(self.trunk) + sum(map(len, self.branches))


@torch.no_grad()
def log_probs(
    model: Any,
    questions: Sequence[Sequence[Choice]],
    *,
    pad_id: int,
    most_tokens: int = MOST_TOKENS,
) -> list[list[float]]:
    """For each question and choice, the sum of the log-probabilities of the tokens that count, in nats."""
    model.eval()
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    trunks = [min(_shared(each), *(choice.first for choice in each)) for each in questions]
    if inner.config.model_type not in _PACKED or min(trunks) < 1:
        return [_padded(model, choices, pad_id) for choices in questions]
    every = [choice for choices in questions for choice in choices]
    # A token of each question's own stays: its hidden state predicts the first of an answer.
    common = min(_shared(every), min(trunks) - 1)
    scores: list[list[float]] = [[] for _ in questions]
    begun = _read(inner, every[0].ids[:common]) if common else []
    split = [
        _split(number, choices, common, trunk)
        for number, (choices, trunk) in enumerate(zip(questions, trunks, strict=True))
    ]
    for row in _rows(split, most_tokens):
        for question, found in zip(row, _score(inner, row, begun, common), strict=True):
            scores[question.number] = found
    return scores


def _shared(choices: Sequence[Choice]) -> int:
    """How many tokens all begin with."""
    low, high = min(choice.ids for choice in choices), max(choice.ids for choice in choices)
    # What the least and the greatest begin with, all between them do too.
    return next(
        (n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b),
        min(len(low), len(high)),
    )


def _split(number: int, choices: Sequence[Choice], common: int, trunk: int) -> _Question:
    return _Question(
        number,
        choices[0].ids[common:trunk],
        tuple(choice.ids[trunk:] for choice in choices),
        tuple(choice.first - trunk for choice in choices),
    )


def _rows(questions: Sequence[_Question], most: int) -> Iterator[list[_Question]]:
    """Questions by length, as many in a row as fit; one that is longer has a row of its own."""
    row: list[_Question] = []
    for question in sorted(questions, key=lambda each: each.tokens):
        if row and sum(each.tokens for each in row) + question.tokens > most:
            yield row
            row = []
        row.append(question)
    if row:
        yield row


def _read(inner: Any, ids: Sequence[int]) -> _Begun:
    """The keys and values of what all begin with, layer by layer."""
    from transformers import DynamicCache

    cache = DynamicCache()
    tokens = torch.tensor([ids], device=inner.device)
    inner.model(input_ids=tokens, past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]


def _cache(begun: _Begun) -> Any:
    """A cache of a row's own that begins with them; a forward pass writes into what it is given."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for number, (keys, values) in enumerate(begun):
        cache.update(keys, values, number)
    return cache


def _score(inner: Any, row: Sequence[_Question], begun: _Begun, common: int) -> list[list[float]]:
    ids: list[int] = []
    places: list[int] = []
    owners: list[tuple[int, int]] = []  # a token's question, and its branch from 1; 0 is the trunk
    wanted: list[tuple[int, int]] = []  # where it is predicted, and the token
    counts: list[int] = []  # tokens that count, by choice
    for number, question in enumerate(row):
        ids += question.trunk
        places += range(common, common + len(question.trunk))
        owners += [(number, 0)] * len(question.trunk)
        last = len(ids) - 1
        for branch, (words, skip) in enumerate(
            zip(question.branches, question.skipped, strict=True), start=1
        ):
            before = [last, *range(len(ids), len(ids) + len(words) - 1)]
            wanted += list(zip(before, words, strict=True))[skip:]
            counts.append(len(words) - skip)
            start = common + len(question.trunk)
            places += range(start, start + len(words))
            owners += [(number, branch)] * len(words)
            ids += words
    hidden = inner.model(
        input_ids=torch.tensor([ids], device=inner.device),
        position_ids=torch.tensor([places], device=inner.device),
        attention_mask=_mask(owners, common, inner),
        past_key_values=_cache(begun) if begun else None,
        use_cache=bool(begun),
    ).last_hidden_state[0]  # [tokens, hidden]
    sums = iter(_sums(_token_scores(inner, hidden, wanted), counts))
    return [[next(sums) for _ in question.branches] for question in row]


def _mask(owners: Sequence[tuple[int, int]], common: int, inner: Any) -> Tensor:
    """[1, 1, tokens, common + tokens], to be added: 0 where a token sees, -inf where it does not."""
    question, branch = torch.tensor(owners, device=inner.device).T
    same = (question[:, None] == question) & ((branch == 0) | (branch[:, None] == branch))
    seen = torch.cat([same.new_ones(len(owners), common), same.tril()], 1)
    mask = torch.zeros(seen.shape, dtype=inner.dtype, device=inner.device)
    return mask.masked_fill_(~seen, float("-inf"))[None, None]


def _token_scores(inner: Any, hidden: Tensor, wanted: Sequence[tuple[int, int]]) -> Tensor:
    """[predictions]: each token's log-probability."""
    where, tokens = torch.tensor(wanted, device=hidden.device).T
    found = []
    for start in range(0, len(where), _HEAD_ROWS):
        part = slice(start, start + _HEAD_ROWS)
        logits = inner.lm_head(hidden[where[part]]).float()
        chosen = logits.gather(1, tokens[part, None])[:, 0]
        found.append(chosen - logits.logsumexp(-1))
    return torch.cat(found)


def _padded(model: Any, choices: Sequence[Choice], pad_id: int) -> list[float]:
    """The same for any model: each text whole, side by side."""
    rows = [
        Example(
            choice.ids,
            tuple(place >= choice.first for place in range(len(choice.ids))),
            len(choice.ids),
        )
        for choice in choices
    ]
    logits, tokens = answer_logits(model, pad(rows, pad_id))
    scores = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    return _sums(scores, [len(choice.ids) - choice.first for choice in choices])


def _sums(scores: Tensor, counts: Sequence[int]) -> list[float]:
    return [float(part.double().sum()) for part in torch.split(scores.cpu(), list(counts))]
