"""What a local run takes of memory, by arithmetic, and how thrifty it must be to fit. No torch here.

Counted is what the process holds at most, in its own memory and of files mapped into it: what Linux calls
its peak resident set. `make bench-memory` measures it beside the forecast.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

_FLOAT = 4
_PROCESS = 488_000_000
"""Python with torch, transformers and peft, before a model is there. Measured."""
_TOKEN_IN_MEMORY = 56
"""Bytes of one token of the rows: its id and its flag, as Python holds them."""
_LOGITS = 32 * 2**20
"""Of a chunk of the head's, for each worker."""
_SLACK = 1.10
"""Of what a pass needs: the allocator's gaps, which it does not give back. Measured."""
PASS_TOKENS = 512
"""Of a worker's pass where memory is no question; a longer row has one of its own."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A base model's sizes, as config.json and the heads of its files give them."""

    hidden: int
    inner: int
    layers: int
    queries: int
    """Features of all queries: heads times their size."""
    keys: int
    """Features of all keys, and of all values."""
    vocabulary: int
    tied: bool
    """Whether the head is the embeddings."""
    stored: Literal["float32", "bfloat16", "float16"]
    """What a weight is in the files."""

    @property
    def stored_bytes(self) -> int:
        """Of a weight in the files."""
        return _FLOAT if self.stored == "float32" else _FLOAT // 2

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """Features in and out of a layer's four products."""
        return {
            "qkv_proj": (self.hidden, self.queries + 2 * self.keys),
            "o_proj": (self.queries, self.hidden),
            "gate_up_proj": (self.hidden, 2 * self.inner),
            "down_proj": (self.inner, self.hidden),
        }

    @property
    def projected(self) -> int:
        """Weights of all products of all layers."""
        return self.layers * sum(a * b for a, b in self.projections.values())

    @property
    def ends(self) -> int:
        """Weights of embeddings and head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def weights(self) -> int:
        return self.projected + self.ends + (2 * self.layers + 1) * self.hidden


@dataclass(frozen=True, slots=True)
class Rows:
    """What a run reads, as far as memory asks."""

    tokens: int
    """Of all rows."""
    trained: int
    longest: int
    """Tokens of the longest row, as it is cut."""
    a_step: int
    """Rows of an optimizer step."""


@dataclass(frozen=True, slots=True)
class Thrift:
    """How a run spares memory. The losses are the same; their last bits need not be."""

    workers: int
    """Who read rows at the same time, each with activations of its own."""
    pass_tokens: int = PASS_TOKENS
    """What a worker reads at once; a longer row has a pass of its own."""
    gradient_checkpointing: bool = False
    """Whether a layer's activations are made again for its gradient, in place of being kept."""
    streamed: bool = False
    """Whether weights stay in their files, and a product's are made as it is computed."""

    @property
    def words(self) -> str:
        said = [
            f"{self.workers} worker" + ("s" if self.workers > 1 else ""),
            f"passes of {self.pass_tokens} tokens" if self.pass_tokens else "one row a pass",
        ]
        said += ["gradient checkpointing"] if self.gradient_checkpointing else []
        said += ["weights streamed from their files"] if self.streamed else []
        return ", ".join(said)


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of each part, at the run's peak."""

    process: int
    weights: int
    adapter: int
    """Its weights, their gradients and the optimizer's two moments."""
    rows: int
    activations: int
    """Of the passes that run at the same time, with what their gradients need beside them."""
    logits: int

    @property
    def total(self) -> int:
        parts = (self.process, self.weights, self.adapter, self.rows)
        return sum(parts) + self.activations + self.logits

    @property
    def bound(self) -> int:
        """The least bound under which this is run: the forecast can be a tenth short."""
        return self.total * 11 // 10


def need(shape: Shape, values: Mapping[str, Any], rows: Rows, thrift: Thrift) -> Need:
    """What a run of LoRA or DoRA on rows end to end takes.

    Args:
        shape: the base's.
        values: the plan's hyperparameters.
        rows: what it reads.
        thrift: how it spares.
    """
    rank, dora = int(values["lora_r"]), _is_dora(values)
    beside = float(values.get("lora_dropout") or 0) > 0
    trained = shape.layers * sum(
        rank * (a + b) + (b if dora else 0) for a, b in shape.projections.values()
    )
    workers = min(thrift.workers, rows.a_step)
    # Itself, two moments, a gradient for each worker and one that is just made.
    adapter = trained * _FLOAT * (3 + 2 * workers)
    tokens = _tokens_of_a_pass(rows, thrift, workers)
    activations = _activations(shape, tokens, _answers(rows, tokens), thrift, dora=dora)
    if beside:
        activations += shape.layers * tokens * sum(a for a, _ in shape.projections.values())
    chunk = min(_LOGITS, _answers(rows, tokens) * shape.vocabulary * _FLOAT)
    return Need(
        process=_PROCESS,
        weights=_weights(shape, thrift, workers, beside=beside),
        adapter=adapter,
        rows=rows.tokens * _TOKEN_IN_MEMORY,
        activations=int(workers * activations * _SLACK),
        logits=workers * chunk,
    )


def _weights(shape: Shape, thrift: Thrift, workers: int, *, beside: bool) -> int:
    if thrift.streamed:
        largest = max(a * b for a, b in shape.projections.values())
        head = 0 if shape.stored_bytes == _FLOAT else shape.vocabulary * shape.hidden
        return shape.weights * shape.stored_bytes + _FLOAT * (workers * largest + head)
    merged = 0 if beside else shape.projected
    return (shape.weights + merged) * _FLOAT


def _tokens_of_a_pass(rows: Rows, thrift: Thrift, workers: int) -> int:
    hand = -(-rows.a_step // workers) * rows.longest
    return max(rows.longest, min(thrift.pass_tokens, hand))


def _answers(rows: Rows, tokens: int) -> int:
    return -(-tokens * rows.trained // max(rows.tokens, 1))


def _activations(shape: Shape, tokens: int, answers: int, thrift: Thrift, *, dora: bool) -> int:
    """Bytes that a pass keeps for its gradients, and the most that one layer's gradients need beside."""
    h, q, i, wide = shape.hidden, shape.queries, shape.inner, shape.queries + 2 * shape.keys
    # Two residuals, two norms; queries, keys and values; what was seen; gate and up, and their product.
    first, then = 2 * h + wide + q, 2 * h + 3 * i
    if dora:  # what came out of each product, for the magnitude's gradient
        first, then = first + wide, then + 2 * h
    kept = shape.layers * tokens * first + ((shape.layers - 1) * tokens + answers) * then
    if thrift.gradient_checkpointing:
        # A layer at a time, and the gaps that it leaves while the next is made again: measured.
        kept = shape.layers * tokens * h + 3 * tokens * (first + then)
    # The gradient of gate and up, what it is made of, and the residual's.
    return _FLOAT * (kept + tokens * (4 * i + 2 * h))


def thrifts(threads: int, values: Mapping[str, Any]) -> Iterator[Thrift]:
    """Ways to spare memory, the quickest first."""
    plain = not (values.get("lora_dropout") or _is_dora(values))
    streams = plain and not values.get("merge_lora_weights")
    streams = streams and str(values.get("init_lora_weights") or "true") in ("true", "gaussian")
    again = (False, True) if not values.get("lora_dropout") else (False,)
    for streamed in (False, True) if streams else (False,):
        for checkpointing in again:
            for workers in sorted({threads, 1}, reverse=True):
                for tokens in (PASS_TOKENS, PASS_TOKENS // 2, 0):
                    yield Thrift(workers, tokens, checkpointing, streamed)


def is_forecast(values: Mapping[str, Any]) -> bool:
    """Whether the run is one that the arithmetic is for: LoRA or DoRA in fp32 on rows end to end."""
    method = values.get("peft_method") or "lora"
    rounded = values.get("load_in_4bit") or values.get("load_in_8bit")
    drops = float(values.get("lora_dropout") or 0) > 0
    return (
        method in ("lora", "dora")
        and values.get("apply_lora", True) is not False
        and str(values.get("precision") or "32") == "32"
        and not rounded
        and not (_is_dora(values) and drops)
    )


def _is_dora(values: Mapping[str, Any]) -> bool:
    return bool(values.get("use_dora")) or values.get("peft_method") == "dora"


def settle(
    shape: Shape, values: Mapping[str, Any], rows: Rows, *, threads: int, most: int | None
) -> tuple[Thrift | None, Need, str]:
    """The quickest way to stay within so many bytes.

    Args:
        shape: the base's.
        values: the plan's hyperparameters.
        rows: what the run reads.
        threads: what it may use.
        most: the bytes; None for no bound.

    Returns:
        The way, None where it is that of a run without a bound; what it needs; and where no way fits,
        which settings would.
    """
    needs = {way: need(shape, values, rows, way) for way in thrifts(threads, values)}
    usual = next(iter(needs))
    fitting = [way for way, needed in needs.items() if most is None or needed.bound <= most]
    if fitting:
        return (None if fitting[0] == usual else fitting[0]), needs[fitting[0]], ""
    least = min(needs.values(), key=lambda needed: needed.total)
    length = _longest_that_fits(shape, values, rows, threads=threads, most=most or 0)
    larger = f"--max-memory {bound_words(least.bound)}"
    return None, least, f"max_seq_length {length}, or {larger}" if length else larger


def _longest_that_fits(
    shape: Shape, values: Mapping[str, Any], rows: Rows, *, threads: int, most: int
) -> int:
    """The largest max_seq_length with which a way stays within so many bytes; 0 where none does."""
    ways = list(thrifts(threads, values))

    def fits(longest: int) -> bool:
        cut = replace(rows, longest=longest)
        return any(need(shape, values, cut, way).bound <= most for way in ways)

    low, high = 0, rows.longest
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{unit}I": 2 ** (10 * place) for place, unit in enumerate("KMGT", 1)}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?I?)B?", re.IGNORECASE)


def read_size(text: str) -> int:
    """`6GB`, `512 MiB` -> bytes.

    Raises:
        ValueError: it is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"{text!r} is no size; write 6GB, 512MB or 4GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def bound_words(count: int) -> str:
    """A `--max-memory` into which so many bytes go: the next hundredth of a gigabyte."""
    return f"{(count // 10**7 + 1) / 100:.2f}GB"


def size_words(count: int) -> str:
    """Bytes for people: `1.24 GB`."""
    return f"{count / 10**9:.2f} GB"
