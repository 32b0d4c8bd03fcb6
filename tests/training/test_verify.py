"""`maas verify`: what was changed, what is missing, and the same bytes made again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from local_runner.train import train
from maas_client import verifying
from maas_client.cli.main import run_cli
from maas_client.errors import RunDirError, RunnerError
from maas_client.spec.rundir import RunDir, read_json, write_json
from maas_client.verifying import FileVerdict, verify

WEIGHTS = "adapter/adapter_model.safetensors"


@pytest.fixture
def run(make_run: Callable[..., RunDir]) -> RunDir:
    made = make_run(max_steps=3, save_strategy="disable", lora_dropout=0.1)
    train(made)
    return made


def states(run: RunDir) -> dict[str, str]:
    return {file.name: file.state for file in verify(run.path).files}


def test_a_run_is_what_its_manifest_says_until_somebody_touches_it(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(["verify", str(run.path)]) == 0
    assert "files as the manifest says" in capsys.readouterr().out
    assert set(states(run).values()) == {"same"}
    with (run.path / WEIGHTS).open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x01")
    (run.adapter / "extra.bin").write_bytes(b"")
    (tmp_path / "run-train.jsonl").unlink()
    found = states(run)
    assert (found[WEIGHTS], found["adapter/extra.bin"]) == ("changed", "extra")
    assert found[str(tmp_path / "run-train.jsonl")] == "missing"
    assert run_cli(["verify", str(run.path), "--rerun", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert told["rerun"] is False  # nothing is trained for files that are not the run's


class Ended:
    """A child that has ended."""

    def wait(self) -> int:
        return 0


def in_this_process(arguments: tuple[str, ...], **_: object) -> Ended:
    """Train where the test is: a process takes seconds to start."""
    train(RunDir(Path(arguments[-1])))
    return Ended()


def test_the_same_plan_makes_the_same_bytes_again(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verifying.runner, "spawn", in_this_process)
    assert run_cli(["verify", str(run.path), "--rerun"]) == 0
    assert "files made again, byte for byte" in capsys.readouterr().out
    assert not list(run.path.parent.glob("*.verify-*"))
    # Another torch made other bytes: said, kept to look at, and no promise broken.
    manifest = read_json(run.manifest_file)
    weights = run.path / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    manifest["outputs"][WEIGHTS] = verifying.file_digest(weights)
    manifest["packages"]["torch"] = "0.1"
    write_json(run.manifest_file, manifest)
    lines = run.metrics_file.read_text().splitlines()
    first = json.loads(lines[0]) | {"loss": 9.0}
    run.metrics_file.write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")
    verdict = verify(run.path, rerun=True)
    assert not verdict.ok
    assert FileVerdict(WEIGHTS, "changed") in verdict.files
    assert "torch was 0.1" in verdict.notes[0]
    assert "nothing was promised" in verdict.notes[-1]
    assert str(verdict.first_difference).startswith("step 1: loss was 9.0")
    assert verdict.kept
    assert (Path(verdict.kept) / WEIGHTS).exists()


def test_what_cannot_be_run_again_says_why(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def spawn(*_: object, **__: object) -> object:
        raise RunnerError("no memory")

    monkeypatch.setattr(verifying.runner, "spawn", spawn)
    with pytest.raises(RunnerError, match="no memory"):
        verify(run.path, rerun=True)
    assert not list(tmp_path.glob("*.verify-*"))
    run.manifest_file.unlink()
    with pytest.raises(RunDirError, match="no manifest"):
        verify(run.path)
