"""Every supported azure-ai-ml against the mock: `make matrix` writes what came of it to MATRIX.md.

    python -m tests.fidelity.matrix

Makes one virtual environment per version under `.matrix/`, once; then runs the notebooks and
every_call.py under each, with recipe A (environment only), B (keywords) and C (the public cloud's
names, through the proxy), each against a mock of its own. Ends with 1 if anything fails that is not a
known defect of the SDK itself.
"""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conftest import ROW
from tests.mocking import ROOT, running_mock

HERE = Path(__file__).parent
TABLE = HERE / "MATRIX.md"
ENVIRONMENTS = ROOT / ".matrix"
VERSIONS = {"1.28.1": ("marshmallow<3.24",), "1.32.0": ("six",), "1.35.2": ()}
"""What each needs beside what it says that it needs."""
BESIDE = ("azure-identity", "requests", "openai", "azure-ai-inference")
REPORTED = ("azure-core", "azure-identity", "azure-storage-blob", "msal", "marshmallow", "openai")
RECIPES = ("A", "B", "C")
PROGRAMS = {
    "notebook.py": "the notebook, whole",
    "maap_notebook.py": "the notebook of managed compute, whole",
    "every_call.py": "every call, whole",
}
"""What is run, and its row; the checks of every_call.py have rows of their own."""

OLD = ("1.28.1", "1.32.0")
DEFECTS = {
    "create_finetuning_job without validation data": (
        tuple(VERSIONS), "UnboundLocalError", "the SDK reads a name that it has not set; no request is sent",
    ),
    "serverless_endpoints.begin_regenerate_keys": (
        tuple(VERSIONS), "TypeError", "the SDK names an argument wrongly; nothing is renewed",
    ),
    "jobs.list: the newest first": (
        OLD, "AssertionError: [None", "the list's model lacks `resources`: each job becomes None",
    ),
    "jobs.list(list_view_type)": (OLD, "AssertionError: [None", "the same"),
    "jobs.begin_delete": (OLD, "AttributeError", "this version has no such verb"),
    "jobs.update: tags, display name": (OLD, "AttributeError", "this version has no such verb"),
}  # fmt: skip
"""Checks that an SDK fails by itself: in which versions, how the error begins, and why."""

Outcomes = dict[str, dict[tuple[str, str], str]]
"""Check -> version and recipe -> what came of it."""


def main() -> int:
    outcomes: Outcomes = {}
    for version in VERSIONS:
        python = environment(version)
        for recipe in RECIPES:
            say(f"azure-ai-ml {version}, recipe {recipe}")
            for name, words in run(python, recipe).items():
                outcomes.setdefault(name, {})[version, recipe] = words
    TABLE.write_text(table(outcomes), encoding="utf-8")
    failed = [
        f"{name}, {version} {recipe}: {words}"
        for name, row in outcomes.items()
        for (version, recipe), words in row.items()
        if words != "ok" and not is_known(name, version, words)
    ]
    say("\n".join(failed) or f"{len(outcomes)} checks as expected; see {TABLE.relative_to(ROOT)}")
    return 1 if failed else 0


def environment(version: str) -> Path:
    """The interpreter of a version's environment, made on first use."""
    folder = ENVIRONMENTS / version
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists():
        say(f"making {folder.relative_to(ROOT)}")
        limits = ENVIRONMENTS / f"constraints-{version}.txt"
        folder.mkdir(parents=True, exist_ok=True)
        limits.write_text(constraints(version))
        call(sys.executable, "-m", "venv", str(folder))
        wanted = (f"azure-ai-ml=={version}", *BESIDE, *VERSIONS[version])
        call(str(python), "-m", "pip", "install", "-q", "-c", str(limits), *wanted)
        ready.touch()
    return python


def constraints(version: str) -> str:
    """Ours, without what this version wants otherwise."""
    free = {"azure-ai-ml", *(name.partition("<")[0] for name in VERSIONS[version])}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return "\n".join(line for line in lines if line.partition("==")[0] not in free) + "\n"


def run(python: Path, recipe: str) -> dict[str, str]:
    """Every program under one version and recipe."""
    seen = {}
    for program, row in PROGRAMS.items():
        with tempfile.TemporaryDirectory() as text:
            folder = Path(text)
            rows = folder / "train.jsonl"
            rows.write_text("".join(ROW.replace("tap", f"tap {n}") + "\n" for n in range(40)))
            (folder / "out").mkdir()
            options = ("--engine", "simulate", "--simulate-seconds", "0.5")
            with running_mock(folder / "mock", *options) as mock:
                done = subprocess.run(
                    [str(python), str(HERE / program), str(rows), str(folder / "out")],
                    env=mock.environment(recipe),
                    cwd=folder,
                    capture_output=True,
                    text=True,
                    timeout=300,
                    check=False,
                )
        if done.returncode != 0:
            seen[row] = done.stderr.strip().splitlines()[-1]
        elif program == "every_call.py":
            seen |= json.loads(done.stdout.splitlines()[-1])
        else:
            seen[row] = "ok"
    return seen


def is_known(name: str, version: str, words: str) -> bool:
    """Whether it is the SDK's own defect."""
    versions, begin, _ = DEFECTS.get(name, ((), "", ""))
    return version in versions and words.startswith(begin)


def table(outcomes: Outcomes) -> str:
    """The result, for people."""
    notes: list[str] = []
    lines = [
        "# Every call, under every supported azure-ai-ml",
        "",
        f"Written by `make matrix` on {dt.datetime.now(tz=dt.UTC).date()}, Python "
        f"{sys.version.partition(' ')[0]}; the mock with `--engine simulate`. How the program is pointed at",
        "the mock: A, by the environment only; B, by keywords; C, by the public cloud's names and a proxy.",
        "**sdk**: the version's own defect, told below the table.",
        "",
        "| check | " + " | ".join(f"{v} {r}" for v in VERSIONS for r in RECIPES) + " |",
        "|---|" + "---|" * (len(VERSIONS) * len(RECIPES)),
    ]
    for name, row in outcomes.items():
        cells = [
            cell(name, v, row.get((v, r), "not run"), notes) for v in VERSIONS for r in RECIPES
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", *(f"{number}. {note}" for number, note in enumerate(notes, 1)), ""]
    lines += ["| with | " + " | ".join(VERSIONS) + " |", "|---|" + "---|" * len(VERSIONS)]
    beside = {version: packages(version) for version in VERSIONS}
    for package in REPORTED:
        found = " | ".join(beside[version].get(package, "-") for version in VERSIONS)
        lines.append(f"| {package} | {found} |")
    return "\n".join(lines) + "\n"


def cell(name: str, version: str, words: str, notes: list[str]) -> str:
    """An outcome, and its note where there is something to say."""
    if words == "ok":
        return "ok"
    known = is_known(name, version, words)
    why = DEFECTS[name][2] if known else "not expected"
    note = f"{name}: {why} (`{words.replace('`', chr(39))}`)"
    if note not in notes:
        notes.append(note)
    return f"**{'sdk' if known else 'FAILED'}** {notes.index(note) + 1}"


def packages(version: str) -> dict[str, str]:
    """What is installed beside it."""
    python = str(ENVIRONMENTS / version / "bin" / "python")
    listed = json.loads(call(python, "-m", "pip", "list", "--format=json"))
    return {entry["name"].lower(): entry["version"] for entry in listed}


def call(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)}\n{done.stderr[-2000:]}")
    return done.stdout


def say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
