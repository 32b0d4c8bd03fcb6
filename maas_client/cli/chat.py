"""`maas chat`: one question, or a conversation, with an endpoint or with weights on this machine."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maas_client.cli import render
from maas_client.cli.options import Json, TargetName
from maas_client.errors import MaasError

if TYPE_CHECKING:
    from maas_client.serving import Chat


def chat(
    name: Annotated[
        str,
        typer.Argument(
            help="An endpoint; with --local a run directory, an adapter's, model's or MLflow "
            "model's folder, or a base."
        ),
    ],
    question: Annotated[
        str | None, typer.Argument(help="What to ask; without it, a conversation.")
    ] = None,
    target: TargetName = "azure",
    local: Annotated[
        bool, typer.Option("--local", help="Answer with weights on this machine.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option("--base", help="With --local: what to put an adapter on, not what it names."),
    ] = None,
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="The question, as an option.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system turn.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0, max=2)] = 0.0,
    as_json: Json = False,
) -> None:
    """Ask a deployed model, or weights on this machine: one question, or line by line.

    In a conversation, an empty line is passed over, /new begins another, and Ctrl-D ends it. Ctrl-C
    stops an answer.
    """
    from maas_client import flow

    if base is not None and not local:
        raise typer.BadParameter("--base is for --local: an endpoint has its own")
    if question is not None and message is not None:
        raise typer.BadParameter("the question is given twice, as an argument and with --message")
    asked = question if question is not None else message
    if asked is not None and not asked.strip():
        raise typer.BadParameter("the question is empty")
    place = None if local else flow.open_target(target)
    line = flow.open_chat(name, place) if place else flow.open_local_chat(name, base=base)
    try:
        render.hint(line.about, as_json=as_json)
        talk = _Talk(line, system, {"max_tokens": max_tokens, "temperature": temperature}, as_json)
        if asked is not None:
            talk.ask(asked)
        else:
            _converse(talk)
    finally:
        line.close()
        if place:
            place.close()


@dataclass
class _Talk:
    """A conversation: what was said so far."""

    line: Chat
    system: str | None
    options: dict[str, Any]
    as_json: bool
    turns: list[dict[str, str]] = field(default_factory=list)

    def ask(self, question: str) -> None:
        """Ask, print the answer while it comes, and keep both for the next question."""
        opening = [{"role": "system", "content": self.system}] if self.system else []
        asked = [*self.turns, {"role": "user", "content": question}]
        if self.as_json:
            answer = self.line.ask([*opening, *asked], **self.options)
            render.answer(answer)
            text = answer.text
        else:
            said: list[str] = []
            with closing(
                _heard(self.line.stream([*opening, *asked], **self.options), said)
            ) as pieces:
                render.stream(pieces)
            text = "".join(said)
        self.turns = [*asked, {"role": "assistant", "content": text}]


def _heard(pieces: Iterator[str], said: list[str]) -> Generator[str, None, None]:
    for piece in pieces:
        said.append(piece)
        yield piece


def _converse(talk: _Talk) -> None:
    """Question after question; one that fails, or is stopped, is as if it had not been asked."""
    for question in _questions():
        if question == "/new":
            talk.turns = []
            continue
        try:
            talk.ask(question)
        except KeyboardInterrupt:
            render.hint("\n(stopped)", as_json=talk.as_json)
        except MaasError as error:
            render.error(error, as_json=talk.as_json)


def _questions() -> Iterator[str]:
    """Lines that say something, from a terminal with a prompt, to the end of the input."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        import readline  # noqa: F401 - importing it gives input() a history
    while True:
        try:
            text = input("you> " if is_terminal else "")
        except EOFError:
            render.hint("", as_json=not is_terminal)
            return
        if text.strip():
            yield text.strip()
