"""What a planned run will cost, and how it stays within a bound of memory. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from maas_client.errors import Problem
from maas_client.spec.inputs import BaseInfo, TokenCount
from maas_client.spec.memory import (
    Rows,
    Shape,
    Thrift,
    bound_words,
    is_forecast,
    need,
    settle,
    size_words,
)
from maas_client.spec.values import batch_size


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the run will cost. None is `unknown`: nothing is guessed."""

    cost_usd: float | None = None
    memory_bytes: int | None = None
    memory: Mapping[str, int] | None = None
    """What the bytes are for, by part."""
    seconds: float | None = None


def weigh(
    values: Mapping[str, Any],
    base: BaseInfo | None,
    tokens: TokenCount | None,
    *,
    threads: int | None,
    most: int | None,
) -> tuple[Thrift | None, Forecast, list[Problem]]:
    """How a run spares memory, what it will take, and why it cannot stay within its bound.

    Args:
        values: the plan's hyperparameters.
        base: what a local run starts from; None elsewhere.
        tokens: of the training rows.
        threads: of a local run.
        most: bytes that it may take; None for no bound.
    """
    known = _known(values, base, tokens)
    if known is None or threads is None:
        words = "--max-memory: the memory of this model, method or target is not forecast"
        refused = [Problem(words, hint="leave --max-memory out", code="memory")] if most else []
        return None, Forecast(), refused
    shape, rows = known
    thrift, parts, advice = settle(shape, values, rows, threads=threads, most=most)
    forecast = Forecast(memory_bytes=parts.total, memory=asdict(parts))
    if most is None or not advice:
        return thrift, forecast, []
    words = f"--max-memory is {size_words(most)}; the run needs at least {size_words(parts.bound)}"
    return None, forecast, [Problem(words, hint=advice, code="memory")]


def thriftier(
    values: Mapping[str, Any],
    base: BaseInfo | None,
    tokens: TokenCount | None,
    threads: int | None,
    now: Thrift | None,
) -> str:
    """The setting with which a run that ran out of memory takes less; empty where none is known."""
    known = _known(values, base, tokens)
    if known is None or threads is None:
        return ""
    shape, rows = known
    held = need(shape, values, rows, now or Thrift(threads)).total
    # Ways that are sure to stay below it take a tenth less, and a run fails by more than a last percent.
    thrift, parts, advice = settle(shape, values, rows, threads=threads, most=held)
    if advice:
        return advice
    return f"--max-memory {bound_words(parts.bound)} ({(thrift or Thrift(threads)).words})"


def _known(
    values: Mapping[str, Any], base: BaseInfo | None, tokens: TokenCount | None
) -> tuple[Shape, Rows] | None:
    """What the arithmetic asks for; None where it is not known, or the run is not of its kind."""
    shape = base.shape if base else None
    if not (shape and tokens and tokens.longest_kept and is_forecast(values)):
        return None
    a_step = batch_size(values) * int(values.get("gradient_accumulation_steps") or 1)
    return shape, Rows(tokens.total, tokens.trained, tokens.longest_kept, a_step)
