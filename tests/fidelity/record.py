"""Makes the recording anew: the notebook against a fresh mock, its journal without repeated questions.

    python -m tests.fidelity.record

Run it when the twin's answers have changed on purpose, and look at the difference before it is committed.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from local_runner.mock_server.control.replay import condensed, read
from tests.conftest import ROW
from tests.fidelity.notebook_run import run_notebook
from tests.mocking import running_mock

RECORDING = Path(__file__).with_name("recordings") / "notebook.jsonl"
OPTIONS = ("--engine", "simulate", "--simulate-seconds", "0.3")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = (
            Path(name) / "example"
        )  # no git checkout: the SDK would write its state into the job
        folder.mkdir()
        rows = folder / "train.jsonl"
        rows.write_text(f"{ROW}\n{ROW.replace('tap', 'door')}\n")
        with running_mock(folder / "mock", *OPTIONS) as mock:
            run_notebook(mock.environment("A"), rows, folder, cwd=folder)
            entries = condensed(read(mock.home / "journal.jsonl"))
        lines = [json.dumps({**entry, "n": n}) for n, entry in enumerate(entries, 1)]
        text = "\n".join(lines).replace(name, "/srv/example")
        RECORDING.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
