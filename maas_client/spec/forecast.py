"""What a planned run will cost, and how it stays within a bound of memory. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from maas_client.errors import Problem
from maas_client.spec.inputs import BaseInfo, TokenCount
from maas_client.spec.memory import Rows, Thrift, is_forecast, settle, size_words
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
    shape = base.shape if base else None
    if not (shape and tokens and tokens.longest_kept and threads and is_forecast(values)):
        words = "--max-memory: the memory of this model, method or target is not forecast"
        refused = [Problem(words, hint="leave --max-memory out", code="memory")] if most else []
        return None, Forecast(), refused
    a_step = batch_size(values) * int(values.get("gradient_accumulation_steps") or 1)
    rows = Rows(tokens.total, tokens.trained, tokens.longest_kept, a_step)
    thrift, parts, advice = settle(shape, values, rows, threads=threads, most=most)
    forecast = Forecast(memory_bytes=parts.total, memory=asdict(parts))
    if most is None or not advice:
        return thrift, forecast, []
    words = f"--max-memory is {size_words(most)}; the run takes at least {size_words(parts.total)}"
    return None, forecast, [Problem(words, hint=advice, code="memory")]
