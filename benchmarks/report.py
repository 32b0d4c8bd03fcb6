"""How a benchmark says what it found: printed, and in a section of a Markdown file where asked."""

from __future__ import annotations

import argparse
from pathlib import Path


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A benchmark's command line: what its docstring's first line says, and `--write`."""
    made = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    made.add_argument("--write", type=Path, help="a Markdown file that gets what was found")
    return made


def tell(text: str, heading: str, file: Path | None) -> None:
    """Print it; with a file, put it there under its heading, too."""
    print(text)
    if file:
        write_section(file, heading, text)


def write_section(file: Path, heading: str, text: str) -> None:
    """Put the text under its heading, in place of what stood there."""
    before = file.read_text(encoding="utf-8") if file.exists() else "# Benchmarks\n"
    head, _, rest = before.partition(f"{heading}\n")
    _, mark, tail = rest.partition("\n## ")
    file.write_text(
        f"{head.rstrip()}\n\n{heading}\n\n{text}\n{mark and mark + tail}", encoding="utf-8"
    )
