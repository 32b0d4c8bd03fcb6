"""Starts the local runner. The client runs it in child processes, and never imports it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from maas_client.errors import (
    BaseModelError,
    DatasetError,
    MaasError,
    Problem,
    RunDirError,
    RunnerError,
)
from maas_client.plan import BaseInfo, TokenCount
from maas_client.spec.inputs import token_count

_ERRORS: dict[str, type[MaasError]] = {
    kind.__name__: kind for kind in (BaseModelError, DatasetError, RunDirError, RunnerError)
}


def command(*arguments: str) -> list[str]:
    """The command line of a runner verb."""
    # -P: a file of the working folder that is called like a module of ours is not one.
    return [sys.executable, "-P", "-m", "local_runner", *arguments]


def require(module: str = "torch", *, extra: str = "train") -> None:
    """Say which extra to install where the runner, or what it needs, is missing.

    Raises:
        RunnerError: it is missing.
    """
    for name in ("local_runner", module):
        if importlib.util.find_spec(name) is None:
            raise RunnerError(
                f"the local runner needs {name}, which is not installed",
                hint=f'pip install "maas-finetune[{extra}]"',
            )


def threads() -> int:
    """Threads that a run uses: OMP_NUM_THREADS, else the cores this process may use."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) > 0 else len(os.sched_getaffinity(0))


def ask(*arguments: str) -> dict[str, Any]:
    """Run a verb that prints one JSON object, and return the object.

    Raises:
        MaasError: the runner's own error, by its type.
    """
    done = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    try:
        answer = json.loads(lines[-1]) if lines else {}
    except ValueError:
        answer = {}
    if isinstance(raw := answer.get("error"), dict):
        raise _error(raw)
    if done.returncode != 0 or not isinstance(answer, dict) or not answer:
        tail = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise RunnerError(f"local_runner {arguments[0]} ended with {done.returncode}: {tail}")
    return answer


def base_info(base: str | None, *, model: str) -> BaseInfo:
    """The weights that `--base` names, or that the catalogue names for the model."""
    require()
    return BaseInfo(**ask("base", *_base(base), "--model", model))


def count_tokens(
    base: str | None,
    *,
    model: str,
    task: str,
    data: Path,
    validation: Path | None = None,
    max_seq_length: int | None = None,
    system_turns: str = "fold",
) -> tuple[BaseInfo, TokenCount, TokenCount | None]:
    """Count the tokens of a dataset, and of held-out rows, with the base model's own tokenizer."""
    require()
    held = () if validation is None else ("--validation", str(validation))
    where = _rows(model, task, data, max_seq_length, system_turns)
    answer = ask("count", *_base(base), *where, *held)
    held_tokens = answer["validation_tokens"]
    return (
        BaseInfo(**answer["base"]),
        token_count(answer["tokens"]),
        None if held_tokens is None else token_count(held_tokens),
    )


def preview(
    base: str | None,
    *,
    model: str,
    task: str,
    data: Path,
    max_seq_length: int | None,
    system_turns: str,
    rows: int,
    line: int,
) -> dict[str, Any]:
    """Some rows as tokens: `base`, `max_seq_length` and `rows`, as the runner's verb prints them."""
    require("tokenizers")
    where = _rows(model, task, data, max_seq_length, system_turns)
    return ask("preview", *_base(base), *where, "--rows", str(rows), "--line", str(line))


def _rows(
    model: str, task: str, data: Path, max_seq_length: int | None, system_turns: str
) -> tuple[str, ...]:
    length = () if max_seq_length is None else ("--max-seq-length", str(max_seq_length))
    where = ("--model", model, "--task", task, "--data", str(data))
    return (*where, *length, "--system-turns", system_turns)


def tracking(mlflow: str | None, tensorboard: str | Path | None) -> list[str]:
    """How a verb is told where a run is logged, too."""
    to = (("--mlflow", mlflow), ("--tensorboard", tensorboard))
    return [word for key, value in to if value for word in (key, str(value))]


def spawn(arguments: Sequence[str], *, log: Path) -> subprocess.Popen[bytes]:
    """Start a verb that lives on by itself; what it prints goes to `log`."""
    with log.open("ab") as stream:
        return subprocess.Popen(
            command(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stream,
            start_new_session=True,  # Ctrl-C is ours to hand on, once
        )


class Answers:
    """A child process that answers with local weights, with or without an adapter.

    Args:
        base: as for `--base`.
        model: the catalogue's name of the base model.
    """

    def __init__(self, base: str | None, *, model: str) -> None:
        require()
        self._child = subprocess.Popen(
            command("answer", *_base(base), "--model", model),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,  # Ctrl-C stops an answer, not whoever gives it
        )
        self._asked = 0
        self.last: dict[str, Any] = {}
        """How the last answer ended: `finish_reason` and `usage`."""
        ready = self._read()
        self.base = BaseInfo(**ready["base"])
        self.folds_system: bool = ready["folds_system"]
        """Whether the chat template has no place for a system turn, so that the user's takes it in."""

    def ask(self, question: Mapping[str, Any], *, adapter: Path | None = None) -> Iterator[str]:
        """The answer in pieces, as they are made.

        Args:
            question: `messages`, `max_tokens`, `temperature`, `seed`, as a chat endpoint takes them.
            adapter: what a job has trained, or None for the base alone.
        """
        self._asked += 1
        number = str(self._asked)
        place = str(adapter.resolve()) if adapter else None
        self._say({**question, "id": number, "adapter": place})
        over = False
        try:
            while not over:
                answer = self._read(number)
                over = "done" in answer
                if over:
                    self.last = answer
                elif "delta" in answer:
                    yield answer["delta"]
        except (GeneratorExit, KeyboardInterrupt):  # nobody listens any more
            with suppress(OSError, ValueError):  # it may be gone already
                self._say({"cancel": number})
            raise

    def close(self) -> None:
        """End the child: it stops when nobody asks any more."""
        self._child.communicate()

    def _say(self, words: Mapping[str, Any]) -> None:
        assert self._child.stdin is not None  # noqa: S101 - opened as a pipe above
        self._child.stdin.write(json.dumps(words) + "\n")
        self._child.stdin.flush()

    def _read(self, number: str | None = None) -> dict[str, Any]:
        """The next words of an answer; those of one that nobody listened to are passed over."""
        assert self._child.stdout is not None  # noqa: S101 - opened as a pipe above
        while True:
            answer = json.loads(self._child.stdout.readline() or "{}")
            if not answer or answer.get("id") in (None, number):
                break
        if not answer:
            _, words = self._child.communicate()
            raise RunnerError(f"the answering process ended: {words.strip()[-500:]}")
        if (raw := answer.get("error")) is not None:
            if isinstance(raw, str):
                raise RunnerError(raw)
            raise _error(raw)
        return dict(answer)


def _error(raw: Mapping[str, Any]) -> MaasError:
    """The runner's own error, by its type."""
    kind = _ERRORS.get(raw.get("type", ""), RunnerError)
    problems = tuple(Problem(**problem) for problem in raw.get("problems", ()))
    return kind(raw.get("message", ""), hint=raw.get("hint", ""), problems=problems)


def _base(base: str | None) -> tuple[str, ...]:
    return () if base is None else ("--base", base)
