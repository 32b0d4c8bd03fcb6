"""A run in MLflow: parameters, metrics, files, and the model as MLflow loads it.

The only file that knows MLflow. Experiment and run have the job's own names, and a run that is resumed,
or tracked again, goes on in the same MLflow run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from local_runner import mlmodel
from local_runner.tracking.sinks import note, numbers
from maas_client.errors import RunnerError
from maas_client.jobs import Event, JobStatus
from maas_client.plan import Plan
from maas_client.spec.rundir import RunDir, RunStatus

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_ENDINGS = {JobStatus.SUCCEEDED: "FINISHED", JobStatus.CANCELLED: "KILLED"}
_PARAMS, _METRICS = 100, 1000
"""How many the API takes at once."""
_LONGEST = 6000
"""Characters of a parameter."""
_NO_EXPERIMENT = "maas"


class MLflowSink:
    """One MLflow run.

    Args:
        run: the run directory that is told.
        plan: its plan.
        uri: a tracking server, `sqlite:///file.db`, or whatever else MLflow takes.

    Raises:
        RunnerError: there is no such place, or it does not answer.
    """

    def __init__(self, run: RunDir, plan: Plan, uri: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its default takes minutes
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self._run, self._plan, self._uri = run, plan, uri
        try:
            self._client = MlflowClient(tracking_uri=uri)
            self._id = self._open()
        except (MlflowException, OSError, ImportError, ValueError) as error:
            raise RunnerError(
                f"MLflow at {uri} cannot be used: {error}",
                hint="Is the tracking server running? `mlflow ui` starts one on port 5000.",
            ) from error
        self.place = f"MLflow run {self._id} at {uri}"

    def take(self, events: Sequence[Event]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(key, value, int(event.at * 1000), int(event.data.get("step", 0)))
            for event in events
            for key, value in numbers(event).items()
        ]
        for start in range(0, len(metrics), _METRICS):
            self._client.log_batch(self._id, metrics=metrics[start : start + _METRICS])

    def finish(self, status: RunStatus) -> None:
        for file in self._run.records():
            self._client.log_artifact(self._id, str(file))
        if status.status is JobStatus.SUCCEEDED and self._run.has_model():
            with TemporaryDirectory() as staged:
                folder = Path(staged) / "model"
                mlmodel.write(self._run, self._plan, folder, run_id=self._id)
                self._client.log_artifacts(self._id, str(folder), "model")
        ended = int((status.ended_at or time.time()) * 1000)
        self._client.set_terminated(self._id, _ENDINGS.get(status.status, "FAILED"), ended)

    def _open(self) -> str:
        before = self._run.tracking().get("mlflow")
        if isinstance(before, dict) and before.get("uri") == self._uri:
            run_id = str(before["run_id"])
            self._client.update_run(run_id, status="RUNNING")
            return run_id
        job = self._plan.job
        status = self._run.read_status()
        created = self._client.create_run(
            _experiment(self._client, job.experiment_name or _NO_EXPERIMENT),
            start_time=int(
                (status.started_at if status and status.started_at else time.time()) * 1000
            ),
            run_name=job.display_name or job.name or self._run.path.name,
            tags={str(key): str(value) for key, value in (job.tags or {}).items()} | self._tags(),
        )
        run_id = str(created.info.run_id)
        self._say_parameters(run_id)
        note(self._run, mlflow={"uri": self._uri, "run_id": run_id})
        return run_id

    def _tags(self) -> dict[str, str]:
        plan, status = self._plan, self._run.read_status()
        return {
            "maas.job": plan.job.name or self._run.path.name,
            "maas.model": plan.job.model.path,
            "maas.base": plan.base.label if plan.base else "",
            "maas.stand_in": str(bool(plan.base and plan.base.stand_in)).lower(),
            "maas.simulated": str(bool(status and status.simulated)).lower(),
        }

    def _say_parameters(self, run_id: str) -> None:
        from mlflow.entities import Param

        values = {key: value for key, value in self._plan.values.items() if value is not None}
        for name, data in (
            ("training_data", self._plan.training),
            ("validation_data", self._plan.validation),
        ):
            if data and data.report:
                values[name] = f"{data.report.rows} rows, sha256 {data.report.sha256}"
        values["model"] = self._plan.job.model.asset_name
        params = [Param(key, str(value)[:_LONGEST]) for key, value in sorted(values.items())]
        for start in range(0, len(params), _PARAMS):
            self._client.log_batch(run_id, params=params[start : start + _PARAMS])


def _experiment(client: MlflowClient, name: str) -> str:
    """The experiment's id; it is made where there is none."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another run was quicker
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)
