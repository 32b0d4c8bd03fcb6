"""`maas preview`: rows token by token, what is trained in colour and in brackets."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maas_client.cli import render
from maas_client.cli.options import Base, JobFile, Json

if TYPE_CHECKING:
    from rich.text import Text

_TRAINED = ("black on green3", "black on pale_green1")
_READ = ("grey89 on grey19", "grey89 on grey30")
_END = "bold white on dark_magenta"
_UNREAD = "grey50 strike"
_LEFT_OUT = "italic"
"""Every style names both colours, so that it can be read on dark terminals and on light ones."""

_OPEN, _CLOSE, _ENDS, _CUT, _BETWEEN, _PART = "⟦", "⟧", "■", "✂", "¦", "▫"
_SHOWN = 60
"""Tokens of a stretch that are shown, half at its beginning and half at its end, without --full."""

_NOTES = {
    "cut answer": "it is cut inside what should be learned: raise max_seq_length, or shorten the row",
    "open end": "the chat template writes no end token after an answer, so none is trained",
    "deaf end": "the model does not stop at this end token: generation_config.json does not name it",
    "system": "the chat template has no place for the system turn: its words stand in the user's",
    "spelled": "the words spell a special token, and become it",
}


def preview(
    job_file: JobFile,
    rows: Annotated[int, typer.Option(help="How many rows.", min=1)] = 3,
    line: Annotated[int, typer.Option(help="From which line of the file on.", min=1)] = 1,
    base: Base = None,
    full: Annotated[bool, typer.Option("--full", help="Leave nothing out of long rows.")] = False,
    as_json: Json = False,
) -> None:
    """Show training rows as the model will meet them, token by token: which are trained, where they end.

    Trained tokens are green and in brackets. Nothing is loaded but the tokenizer.
    """
    from maas_client import planning

    found = planning.preview(job_file, base=base, rows=rows, line=line)
    if as_json:
        render.data(found)
        return
    console = render.console()
    plain = console.no_color or console.color_system is None
    console.print(_legend(plain=plain))
    for row in found["rows"]:
        console.print()
        console.print(_heading(found["path"], row), soft_wrap=True, highlight=False)
        if "error" in row:
            console.print(f"  cannot be trained: {row['error']}", markup=False, highlight=False)
            continue
        console.print(_body(row, plain=plain, full=full))
        for note in row["notes"]:
            console.print(f"  note: {_NOTES[note]}", markup=False, highlight=False)
    console.print(f"\nby the tokenizer of {found['base']['label']}", markup=False, highlight=False)


def _legend(*, plain: bool) -> Text:
    from rich.text import Text

    styles = ("", "", "") if plain else (_TRAINED[0], _END, _READ[0])
    legend = Text(_OPEN)
    legend.append("trained", styles[0])
    legend.append(f"{_CLOSE}  ")
    legend.append("read only", styles[2])
    legend.append("  ")
    legend.append("ends a turn", styles[1])
    return legend.append(
        f"{_ENDS}  {_CUT} cut here" + (f"  {_BETWEEN} next token" if plain else "")
    )


def _heading(path: str, row: dict[str, Any]) -> str:
    where = f"{path.rpartition('/')[2]} line {row['line']}"
    if "error" in row:
        return where
    cut = "" if row["cut"] is None else f", cut at {row['cut']:,}"
    return f"{where}: {row['length']:,} tokens, {row['trained']:,} trained{cut}"


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Tokens that follow each other and share their fate."""

    tokens: Sequence[dict[str, Any]]
    trained: bool
    read: bool
    """Whether they stand before the cut."""


def _stretches(row: dict[str, Any]) -> Iterator[_Stretch]:
    cut = row["length"] if row["cut"] is None else row["cut"]
    numbered = enumerate(row["tokens"])
    for (trained, read), group in groupby(
        numbered, key=lambda entry: (entry[1]["trained"], entry[0] < cut)
    ):
        yield _Stretch([token for _, token in group], trained, read)


def _body(row: dict[str, Any], *, plain: bool, full: bool) -> Text:
    from rich.text import Text

    body = Text(overflow="fold")
    was_read = True
    for stretch in _stretches(row):
        if was_read and not stretch.read:
            body.append(f" {_CUT} ")
        was_read = stretch.read
        body.append(_OPEN if stretch.trained else "")
        _append(body, stretch, plain=plain, full=full)
        body.append(_CLOSE if stretch.trained else "")
    body.rstrip()
    return body


def _append(body: Text, stretch: _Stretch, *, plain: bool, full: bool) -> None:
    tokens = stretch.tokens
    skip = 0 if full else max(0, len(tokens) - _SHOWN)
    half = _SHOWN // 2
    for place, token in enumerate(tokens):
        if skip and half <= place < half + skip:
            if place == half:
                body.append(f" … {skip:,} tokens … ", "" if plain else _LEFT_OUT)
            continue
        between = plain and place > 0 and not tokens[place - 1]["text"].endswith("\n")
        body.append(_BETWEEN if between else "")
        body.append(_visible(token["text"]), "" if plain else _style(token, stretch, place))
        body.append(_ENDS if token["end"] else "")


def _style(token: dict[str, Any], stretch: _Stretch, place: int) -> str:
    if not stretch.read:
        return _UNREAD
    if token["end"]:
        return _END
    return (_TRAINED if stretch.trained else _READ)[place % 2]


def _visible(text: str) -> str:
    """A token's text with its white space to be seen, and nothing that a terminal would obey."""
    if not text:
        return _PART  # the rest of a character that took several tokens
    shown = text.replace("\r", "␍").replace("\n", "⏎\n").replace("\t", "⇥")
    return "".join(
        char
        if char == "\n" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else f"\\u{ord(char):04x}"
        for char in shown
    )
