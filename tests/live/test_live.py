"""The whole journey on a user's own workspace: tune the cheapest model, serve it, ask it, clean up.

`make live` runs it; docs/azure-ml.md says what it needs and costs. What it leaves behind on
success and on failure alike: an archived job and an archived model, which Azure keeps for nothing.
"""

# ruff: noqa: T201 - whoever spends the money watches

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from maas_client import flow
from maas_client.errors import NotFoundError
from maas_client.handle import JobHandle
from maas_client.jobs import JobStatus
from maas_client.settings import AzureMLSettings, find_target
from maas_client.spec.catalog import ModelEntry, catalog
from maas_client.spec.dataset import check
from maas_client.targets.azure_ml import AzureMLTarget
from tests.conftest import ROW

ROWS = 32
"""Enough for a few steps; each row has about 20 tokens, and tokens are what training costs."""
PLACES = ("tap", "door", "lamp", "sink", "desk", "shelf", "stove", "clock")

JOB = """\
type: finetuning
task: chat_completion
model_provider: custom
display_name: maas-finetune live test
tags: {{made_by: maas-finetune make live}}
model: {{path: "{model}", type: mlflow_model}}
training_data: {{path: train.jsonl, type: uri_file}}
hyperparameters:
  num_train_epochs: "1"
  per_device_train_batch_size: "4"
outputs:
  registered_model: {{name: {name}, type: mlflow_model}}
"""


@pytest.fixture
def place() -> Iterator[AzureMLTarget]:
    """The workspace: `--target azure`, or the one that MAAS_LIVE_TARGET names."""
    settings = find_target(os.environ.get("MAAS_LIVE_TARGET", "azure"))
    assert isinstance(settings, AzureMLSettings), f"{settings.name} is not an Azure ML workspace"
    made = AzureMLTarget(settings)
    yield made
    made.close()


@pytest.mark.live
@pytest.mark.timeout(6 * 3600)  # the service queues jobs for as long as it likes
def test_a_model_is_tuned_served_asked_and_cleaned_up(place: AzureMLTarget, tmp_path: Path) -> None:
    name = f"maas-live-{secrets.token_hex(3)}"
    with ExitStack() as cleanup:
        region = _checked(place)
        model = os.environ.get("MAAS_LIVE_MODEL") or _cheapest(region).asset_id()
        plan = flow.plan_job(_write_job(tmp_path, model, name), place, name=name)
        with _step(f"tune {model} on {ROWS} rows"):
            handle = flow.submit(plan, place)
            cleanup.callback(_put_away, place, handle)
            for event in handle.follow():
                print(f"  {event.message}")
        job = handle.get()
        assert job.status is JobStatus.SUCCEEDED, job.error
        assert job.output_model
        assert place.submit(plan).id == job.id
        with _step("download"):
            run = handle.download(tmp_path / "run")
            assert run.adapter.is_dir() or run.merged.is_dir()
        with _step("deploy, billed by the hour from here on"):
            cleanup.callback(_undeploy, place, name)
            place.deploy(job.output_model, endpoint=name)
        line = flow.open_chat(name, place)
        cleanup.callback(line.close)
        answer = line.ask([{"role": "user", "content": "Where is the tap?"}], max_tokens=20)
        print(f"  {answer}")
        assert answer
    assert name not in [endpoint.name for endpoint in place.endpoints()]


def _checked(place: AzureMLTarget) -> str:
    """What is missing is told before anything is spent; returns the workspace's region."""
    findings = place.check()
    for finding in findings:
        print(f"  {'ok' if finding.ok else 'NO'}  {finding.name}: {finding.detail}")
    wrong = [f"{f.name}: {f.detail}. {f.next_step}" for f in findings if not f.ok]
    assert not wrong, "\n".join(wrong)
    return next(f.detail for f in findings if f.name == "workspace").rpartition(", ")[2]


def _cheapest(region: str) -> ModelEntry:
    """The smallest model that can be tuned and served there, by today's date."""
    today = time.strftime("%Y-%m-%d", time.gmtime())
    able = [
        entry
        for entry in catalog().values()
        if entry.serverless
        and region in entry.tuning_regions
        and region in entry.deploy_regions
        and not (entry.retired and str(entry.retired) <= today)
    ]
    assert able, f"no model of the catalogue is tuned serverless in {region} any more"
    return min(able, key=lambda entry: (entry.parameters, entry.context))


def _write_job(folder: Path, model: str, name: str) -> Path:
    rows = [ROW.replace("tap", f"{PLACES[n % len(PLACES)]} of room {n}") for n in range(ROWS)]
    (folder / "train.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "job.yaml").write_text(JOB.format(model=model, name=name))
    return folder / "job.yaml"


def _put_away(place: AzureMLTarget, handle: JobHandle) -> None:
    with _step("put the job and its model away"):
        handle.cancel()
        place.archive(handle.get())


def _undeploy(place: AzureMLTarget, name: str) -> None:
    with _step("undeploy"), suppress(NotFoundError):
        place.undeploy(name)


@contextmanager
def _step(words: str) -> Iterator[None]:
    began = time.monotonic()
    print(f"{words} …", flush=True)
    yield
    print(f"{words}: {time.monotonic() - began:.0f} s", flush=True)


def test_the_live_rows_and_job_are_good(tmp_path: Path) -> None:
    """Runs everywhere: the live test must not fail on its own files."""
    from maas_client.spec.loading import load_job

    job = load_job(_write_job(tmp_path, _cheapest("eastus2").asset_id(), "maas-live-x"))
    assert check(tmp_path / "train.jsonl", job.task).ok
