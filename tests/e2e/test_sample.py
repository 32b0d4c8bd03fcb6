"""The demo, whole, on the tiny model: the same program that `make demo` runs on the stand-in."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from maas_client.spec.dataset import check
from maas_client.spec.loading import load_job

SAMPLES = Path(__file__).parents[2] / "samples"
AGENT = SAMPLES / "support-agent"


def test_the_demo_runs_from_plan_to_undeploy(in_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(AGENT / "demo.py"), "--base", "tiny"],
        cwd=in_folder,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for word in (
        "Plan",
        "submitted as",
        "support-agent:1",
        "online",
        "billed by the hour",
        "the endpoint is gone",
    ):
        assert word in done.stdout + done.stderr, word
    losses = re.search(r"held-out loss +before ([\d.]+) +after ([\d.]+)", done.stdout)
    assert losses
    assert float(losses[2]) < float(losses[1])
    assert "measured on tiny random Phi-3" in done.stdout
    assert "in all" in done.stdout


@pytest.mark.parametrize(
    "file", sorted(SAMPLES.rglob("job.yaml")), ids=lambda file: file.parent.name
)
def test_every_job_file_among_the_samples_loads_and_says_how_to_run_it(file: Path) -> None:
    assert file.read_text().startswith(("# maas ", "# python samples/"))
    job = load_job(file)
    path = job.training_data.path
    if path.startswith("https://"):
        return  # where a cluster finds it
    if file.parent.name == "truthfulqa":
        assert path in (file.parent / "measure.py").read_text()  # which makes it
        return
    assert check(file.parent / path, job.task).ok


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def test_no_held_out_text_shares_eight_words_in_a_row_with_training() -> None:
    def texts(name: str) -> list[str]:
        rows = [json.loads(line) for line in (AGENT / name).read_text().splitlines()]
        return [message["content"] for row in rows for message in row["messages"]]

    def runs(text: str) -> set[tuple[str, ...]]:
        said = words(text)
        return {tuple(said[i : i + 8]) for i in range(len(said) - 7)}

    train, held_out = texts("train.jsonl"), texts("heldout.jsonl")
    assert len(train) >= 2 * 120
    assert len(held_out) >= 2 * 30
    known = set().union(*map(runs, train))
    assert [text for text in held_out if runs(text) & known] == []
    assert set(map(str.lower, held_out)).isdisjoint(map(str.lower, train))


def test_the_dry_run_ends_with_one_job_though_the_reply_was_lost(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SAMPLES / "ci-dry-run" / "dry_run.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "[('nightly', 'succeeded', 'nightly:1')]" in done.stdout
    assert "lost-reply" in done.stdout.splitlines()[-2]
