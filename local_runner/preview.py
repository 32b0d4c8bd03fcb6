"""Some rows token by token: the text of each, whether it is trained, which ends a turn, where the cut is."""

from __future__ import annotations

from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Any

from local_runner.data import ChatTokenizer, Row, trained_places
from maas_client.errors import DatasetError
from maas_client.spec.dataset import numbered_rows
from maas_client.spec.tasks import trainable


def preview(
    tokenizer: ChatTokenizer, file: Path, *, task: str, max_length: int, count: int, line: int = 1
) -> list[dict[str, Any]]:
    """The first rows from a line on, as a run would read them.

    Returns:
        For each row its `line`, `length` in tokens, `trained` tokens, `cut` (the token that the row is
        cut before, or null), `notes`, and `tokens`: `id`, `text`, `trained`, `end` (whether it ends a
        trained turn). The texts together are the row as the model meets it. A row that cannot be
        trained has `error` instead.

    Raises:
        DatasetError: the file has no such line.
    """
    numbered = trainable(numbered_rows(file), task)
    chosen = list(islice((entry for entry in numbered if entry[0] >= line), count))
    if not chosen:
        raise DatasetError(f"{file} has no row from line {line} on", hint="Name a smaller --line.")
    return [{"line": number, **_shown(tokenizer, row, max_length)} for number, row in chosen]


def _shown(tokenizer: ChatTokenizer, row: Row, max_length: int) -> dict[str, Any]:
    try:
        drawn = tokenizer.draw(row)
    except Exception as error:  # noqa: BLE001 - a template raises what it likes
        return {"error": str(error)}
    [(ids, places)] = tokenizer.code([drawn])
    trained = trained_places(places, drawn.spans)
    ends = {stop - len(end) for (_, stop), end in zip(drawn.spans, drawn.ends, strict=True) if end}
    # A character of several tokens is shown with the first of them, white space that no token has
    # with the next one, and what is left with the last.
    stops = [0, *accumulate((after for _, after in places), max)]
    stops[-1] = len(drawn.text)
    tokens = [
        {
            "id": token,
            "text": drawn.text[since:stop],
            "trained": learned,
            "end": learned and start in ends,
        }
        for token, (start, _), learned, (since, stop) in zip(
            ids, places, trained, pairwise(stops), strict=True
        )
    ]
    return {
        "length": len(ids),
        "trained": sum(trained[1:max_length]),
        "cut": max_length if len(ids) > max_length else None,
        "notes": sorted({*drawn.notes, *(("cut answer",) if any(trained[max_length:]) else ())}),
        "tokens": tokens,
    }
