"""A run in MLflow and in TensorBoard: the real ones, read back through their own clients."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from local_runner import inputs, mlmodel
from local_runner.__main__ import main
from local_runner.generate import Answerer, Ask
from local_runner.models import base as bases
from local_runner.pyfunc import Model
from local_runner.tracking.tracking import start
from maas_client.errors import BaseModelError, RunDirError
from maas_client.spec.rundir import RunDir, read_json, write_json
from maas_client.spec.weights import find_weights

from .conftest import MakeRun, chat

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow warns of its own parts

QUESTION = [{"role": "user", "content": "Where is tap 3????"}]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`mlflow ui` on a SQLite file."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--port", str(port), "--workers", "1"]
    place = ["--backend-store-uri", f"sqlite:///{folder}/runs.db"]
    files = ["--artifacts-destination", str(folder / "files")]
    environment = os.environ | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(
            [*command, *place, *files],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        _wait(f"{uri}/health", child, folder / "log")
        yield uri
    finally:
        os.killpg(child.pid, 15)
        child.wait(timeout=30)


def _wait(url: str, child: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert child.poll() is None, log.read_text()
        try:
            if httpx.get(url, timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.05)  # asked again, not waited for
    raise AssertionError(log.read_text())


def tracked(run: RunDir, *words: str) -> int:
    return main(["train", "--quiet", *words, str(run.path)])


def test_a_run_is_all_in_mlflow_and_its_model_answers_from_there(
    make_run: MakeRun, server: str, tmp_path: Path
) -> None:
    import mlflow
    from mlflow.tracking import MlflowClient

    run = make_run(held_out=chat(2, shift=20), max_steps=3, merge_lora_weights=True)
    assert tracked(run, "--mlflow", server) == 0
    client = MlflowClient(tracking_uri=server)
    [experiment] = client.search_experiments(filter_string="name = 'maas'")
    [found] = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    plan = inputs.read_plan(run)
    assert found.data.params["learning_rate"] == "0.002"
    assert found.data.params["model"] == "Phi-3-mini-4k-instruct"
    assert plan.training.report
    assert plan.training.report.sha256 in found.data.params["training_data"]
    assert found.data.tags["maas.stand_in"] == "true"
    losses = [m.value for m in client.get_metric_history(found.info.run_id, "loss")]
    assert losses == [metric["loss"] for metric in run.metrics() if "loss" in metric]
    [*_, last] = [metric["eval_loss"] for metric in run.metrics() if "eval_loss" in metric]
    assert found.data.metrics["eval_loss"] == last
    folder = Path(client.download_artifacts(found.info.run_id, "model", str(tmp_path)))
    answers = mlflow.pyfunc.load_model(str(folder)).predict([{"messages": QUESTION}])
    assert answers == [_answer(run)]
    assert "<title>MLflow</title>" in httpx.get(server).text
    # The same run again is the same MLflow run: it goes on there.
    assert main(["track", "--mlflow", server, str(run.path)]) == 0
    assert len(client.search_runs([experiment.experiment_id])) == 1


def _answer(run: RunDir) -> str:
    answerer = Answerer(bases.resolve("tiny", model=""))
    *pieces, _ = answerer.answer(Ask(QUESTION, adapter=run.adapter))
    return "".join(str(piece) for piece in pieces)


def test_a_resumed_run_goes_on_in_the_same_mlflow_run_on_sqlite(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/runs.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run = make_run(max_steps=2, save_strategy="steps", save_steps=1)
    run.cancel_file.touch()
    assert tracked(run) == 130
    client = MlflowClient(tracking_uri=uri)
    run_id = read_json(run.tracking_file)["mlflow"]["run_id"]
    assert client.get_run(run_id).info.status == "KILLED"
    run.cancel_file.unlink()
    assert tracked(run) == 0
    assert client.get_run(run_id).info.status == "FINISHED"
    assert {m.step for m in client.get_metric_history(run_id, "loss")} == {1, 2}
    assert run.tracking()["places"] == [f"MLflow run {run_id} at {uri}"]


def test_an_mlflow_that_is_away_costs_the_run_nothing_and_is_said(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{closed.getsockname()[1]}"
        run = make_run(max_steps=1)
        assert tracked(run, "--mlflow", away) == 0
        assert f"MLflow at {away} cannot be used" in capsys.readouterr().err
        assert "cannot be used" in run.tracking()["trouble"]
        assert main(["track", "--mlflow", away, str(run.path)]) == 1
    assert "mlflow ui" in capsys.readouterr().err


def test_a_sink_that_breaks_in_the_middle_does_not_break_the_run(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("the disk is full")

    uri = f"sqlite:///{tmp_path}/runs.db"
    run = make_run(max_steps=2)
    monkeypatch.setattr(MlflowClient, "log_batch", refuse)
    tracking = start(run, mlflow=uri)
    assert tracking is None  # not even its parameters could be told
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    tracking = start(run, mlflow=uri)
    assert tracking
    monkeypatch.setattr(MlflowClient, "log_batch", refuse)
    from local_runner.train import train

    assert train(run, on_event=tracking.take).status == "succeeded"
    tracking.finish()
    assert "the disk is full" in run.tracking()["trouble"]
    assert run.tracking()["places"] == []


def test_tensorboard_reads_what_a_run_wrote(make_run: MakeRun, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = make_run(max_steps=3)
    assert tracked(run, "--tensorboard", str(tmp_path / "board")) == 0
    board = EventAccumulator(str(tmp_path / "board" / run.path.name))
    board.Reload()
    said = [(point.step, point.value) for point in board.Scalars("loss")]
    told = [(m["step"], pytest.approx(m["loss"], rel=1e-6)) for m in run.metrics() if "loss" in m]
    assert said == told
    assert main(["track", str(run.path)]) == 1  # nothing was named


def test_a_simulated_runs_model_folder_says_that_it_is_one(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(max_steps=1)
    assert main(["simulate", "--quiet", "--seconds", "0", str(run.path)]) == 0
    mlmodel.write(run, inputs.read_plan(run), tmp_path / "model")
    with pytest.raises(RunDirError, match="was simulated: there are no weights in it"):
        find_weights(tmp_path / "model")


def test_a_model_whose_base_is_not_here_or_not_its_own_says_so(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(max_steps=1)
    assert tracked(run) == 0
    folder = tmp_path / "model"
    mlmodel.write(run, inputs.read_plan(run), folder)
    data = folder / mlmodel.DATA
    few = {"max_tokens": 3, "stop": "\n"}
    asked = [{"role": "user", "content": "Where?"}]
    assert Model(data).predict("Where?", few) == Model(data).predict([asked], few)
    base = read_json(folder / mlmodel.BASE)
    write_json(folder / mlmodel.BASE, base | {"source": str(tmp_path / "nowhere")})
    with pytest.raises(BaseModelError, match="there is no such folder"):
        Model(data)
    monkeypatch.setenv("MAAS_BASE", "tiny")
    assert Model(data).label.startswith("tiny")
