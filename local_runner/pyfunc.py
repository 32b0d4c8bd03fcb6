"""Loads a model folder for MLflow: `mlflow.pyfunc.load_model(folder).predict(questions)`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from local_runner import mlmodel

if TYPE_CHECKING:
    from local_runner.generate import Answer, Answerer

BASE_VARIABLE = "MAAS_BASE"
"""Names the base weights where those that the model was trained on are not on this machine."""


class Model:
    """A base with its adapter, or a merged model.

    Args:
        data: the folder `data` of an MLflow model that `mlmodel` wrote.

    Raises:
        BaseModelError: the base is not here, or the adapter is not its own.
    """

    def __init__(self, data: Path) -> None:
        from local_runner.generate import Answerer
        from local_runner.models import base as bases

        merged = data / Path(mlmodel.MERGED).name
        if merged.is_dir():
            self._adapter = None
            base = bases.resolve(str(merged), model="")
        else:
            said = mlmodel.base_of(data)
            self._adapter = data / Path(mlmodel.ADAPTER).name
            source = os.environ.get(BASE_VARIABLE) or said.get("source")
            base = bases.resolve(source, model=str(said.get("model", "")))
        self._answerer: Answerer = Answerer(base)
        self.label = base.info.label
        if self._adapter is not None:
            self._answerer.take_up(self._adapter)

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[str]:
        """An answer to each question.

        Args:
            model_input: texts, or conversations as `{"messages": [...]}`; a list, or a DataFrame with a
                column `messages` or one column of texts.
            params: `max_tokens`, `temperature`, `top_p`, `seed`, `stop`, as a chat endpoint takes them.
        """
        from local_runner.generate import Ask

        given = {key: value for key, value in (params or {}).items() if value is not None}
        if "stop" in given:
            given["stop"] = tuple(
                [given["stop"]] if isinstance(given["stop"], str) else given["stop"]
            )
        asks = [
            Ask(messages, adapter=self._adapter, **given)
            for messages in _conversations(model_input)
        ]
        begun = [self._answerer.begin(ask) for ask in asks]
        while not all(answer.over for answer in begun):
            self._answerer.step()
        return [_text(answer) for answer in begun]


def _load_pyfunc(path: str) -> Model:
    """What MLflow calls; `path` is the folder `data`."""
    return Model(Path(path))


def _conversations(given: Any) -> Iterable[list[Mapping[str, Any]]]:
    if hasattr(given, "to_dict"):  # a DataFrame
        given = given.to_dict(orient="records")
    for row in [given] if isinstance(given, str | Mapping) else given:
        if isinstance(row, Mapping):
            one = row.get("messages", next(iter(row.values())) if len(row) == 1 else None)
        else:
            one = row
        if isinstance(one, str):
            yield [{"role": "user", "content": one}]
        elif isinstance(one, Iterable):
            yield list(one)
        else:
            raise TypeError(f"{row!r} is no question: give a text, or a row with `messages`")


def _text(answer: Answer) -> str:
    return "".join(piece for piece in answer.pieces if isinstance(piece, str))
