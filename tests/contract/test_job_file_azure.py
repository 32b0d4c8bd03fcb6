"""Our job file is Azure ML's: azure-ai-ml's own `load_job` and ours take and refuse the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maas_client.errors import SpecError
from maas_client.spec.job import FineTuningJob, InputMode, OutputMode
from maas_client.spec.loading import TASKS, dump_job, load_job, parse_job

Reader = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def sdk() -> Iterator[Reader]:
    """What azure-ai-ml makes of a job file, given as text or as a file."""
    child = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("sdk_reader.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    )

    def read(**question: str) -> dict[str, Any]:
        assert child.stdin
        assert child.stdout
        child.stdin.write(json.dumps(question) + "\n")
        child.stdin.flush()
        answer: dict[str, Any] = json.loads(child.stdout.readline())
        return answer

    with child:
        yield read
        assert child.stdin
        child.stdin.close()


# --- the same files are taken and refused -----------------------------------------------------

_PHI = '{path: "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/15", type: mlflow_model}'
_LINES = {
    "type": "type: finetuning",
    "task": "task: chat_completion",
    "model_provider": "model_provider: custom",
    "model": f"model: {_PHI}",
    "training_data": "training_data: {path: train.jsonl, type: uri_file}",
}

TAKEN = (
    "task: chatCompletion",
    *(f"task: {task}" for task in TASKS),
    'model: {path: "azureml:m:1", type: MLFLOW_MODEL, mode: RO_MOUNT}',
    'model: {path: "azureml:m@latest", type: custom_model, mode: download}',
    'model: {path: "azureml:m:1", type: mlflow_model, datastore: mine}',
    "model: {path: ./local/model, type: mlflow_model}",
    "training_data: train.jsonl",
    'training_data: "./train.jsonl"',
    'training_data: "file:./train.jsonl"',
    'training_data: "/abs/train.jsonl"',
    'training_data: "azureml:d:1"',
    'training_data: "azureml:d@latest"',
    'training_data: "azureml://datastores/x/paths/y.jsonl"',
    'training_data: "https://host/y.jsonl"',
    'training_data: "wasbs://x/y.jsonl"',
    "training_data: {path: a.jsonl}",
    "training_data: {path: a.jsonl, type: URI_FILE}",
    "training_data: {path: a, type: uri_folder, mode: direct}",
    "training_data: {path: a, datastore: mine}",
    "validation_data: v.jsonl",
    'hyperparameters: {lora_r: "8", learning_rate: "2e-5", seed: null}',
    "hyperparameters: {learning_rate: 2e-5}",  # YAML 1.1 reads it as text
    "hyperparameters: {}",
    "outputs: {registered_model: {name: m, type: mlflow_model}}",
    "outputs: {registered_model: {name: m, type: CUSTOM_MODEL, version: 3, mode: upload}}",
    "outputs: {registered_model: {name: m, mode: mount}}",
    "outputs: {registered_model: null}",
    "outputs: {}",
    "compute: cluster",
    "compute: azureml:cluster",
    "resources: {instance_types: [a, b]}",
    "resources: {instance_types: []}",
    "queue_settings: {job_tier: Spot, priority: HIGH}",
    'queue_settings: {job_tier: "null"}',
    "queue_settings: {}",
    "tags: {a: b, c: null}",
    "properties: {a: b, c: null}",
    "name: job-1",
    "display_name: d",
    'description: "2024-01-01"',
    "experiment_name: a b",
    "$schema: https://azuremlschemas.azureedge.net/latest/FineTuningJob.schema.json",
    "status: Running",
    'services: {Studio: {endpoint: "https://x", type: Studio}}',
    "creation_context: {created_at: 2024-11-25T07:35:00}",
    'id: "azureml:/subscriptions/x"',
    "log_files: {a: b}",
)

REFUSED = (
    "-type",
    "type: FineTuning",
    "-task",
    "task: ChatCompletion",
    "task: CHAT_COMPLETION",
    "task: banana",
    "-model_provider",
    "model_provider: Custom",
    "model_provider: azure_openai",
    "-model",
    'model: {path: "azureml:m:1"}',
    'model: {path: "azureml:m:1", type: uri_file}',
    'model: {path: "azureml:m:1", type: mlflow_model, mode: rw_mount}',
    'model: {path: "azureml:m:1", type: mlflow_model, mode: null}',
    "training_data: 3",
    "training_data: null",
    "training_data: {path: 3}",
    "training_data: {path: null}",
    "training_data: {path: a, type: mltable}",
    "training_data: {path: a, mode: rw_mount}",
    "training_data: {path: a, mode: eval_mount}",
    "training_data: {path: a, description: d}",
    "validation_data: null",
    "hyperparameters: {lora_r: 8}",
    "hyperparameters: {learning_rate: 0.00002}",
    "hyperparameters: {apply_lora: true}",
    'hyperparameters: {8: "1"}',
    "hyperparameters: null",
    "hyperparameters: []",
    "outputs: null",
    'outputs: {registered_model: "azureml:x"}',
    "outputs: {registered_model: {name: m, mode: ro_mount}}",
    "outputs: {registered_model: {name: m, description: d}}",
    "outputs: {registered_model: {name: null}}",
    'outputs: {registered_model: {version: "3"}}',
    "outputs: {registered_model: {name: phi-3.5-tuned}}",
    "compute: null",
    "compute: 3",
    "resources: {}",
    "resources: null",
    "resources: {instance_types: a}",
    "resources: {instance_types: [1]}",
    "resources: {instance_count: 1}",
    "queue_settings: {job_tier: banana}",
    "queue_settings: {job_tier: null}",
    "queue_settings: {priority: urgent}",
    "tags: {a: 1}",
    "tags: {a: true}",
    "tags: {1: a}",
    "tags: null",
    "tags: []",
    "properties: {a: 1}",
    "properties: null",
    "name: null",
    "name: 3",
    "display_name: null",
    "display_name: 3",
    "description: null",
    "description: 2024-01-01",
    "experiment_name: null",
    'version: "1"',
    "banana: 1",
    "environment: azureml:e:1",
    "inputs: {}",
)

STRICTER = {
    "-training_data": "the service refuses a job without rows",
    "training_data: {type: uri_file}": "the service refuses a job without rows",
    "model: {type: mlflow_model}": "the service refuses a job without a model",
    'model: {path: "azureml:m:1", type: triton_model}': "azure-ai-ml itself refuses it later on",
    'hyperparameters: {unknown_knob: "1"}': "a key that nobody honours is refused at home",
    'hyperparameters: {seed: "1_000"}': "the component could not read it",
    'name: "has space"': "the service refuses the name",
    'name: ""': "the service refuses the name",
    "outputs: {registered_model: {name: -m}}": "the service refuses the name",
    "outputs: {registered_model: {name: m, version: 3.5}}": "the service's versions are whole",
    "$schema: 3": "a schema is a URL",
}
"""Refused here, though azure-ai-ml's loader takes it: each with its reason."""

LOOSER = {
    f"model: {_PHI[7:-21]}": "one string can only be a path; dump_job writes the mapping",
    "identity: {type: managed}": "valid by Azure's schema; azure-ai-ml 1.35.2 dies of a TypeError",
    "identity: {type: user_identity}": "the same",
    "services: null": "read-only keys are dropped unread",
}
"""Taken here, though azure-ai-ml's loader refuses it: each with its reason."""


def _file(change: str) -> str:
    """A good job file with one line changed, or removed where the change begins with `-`."""
    key = change.removeprefix("-").partition(":")[0]
    lines = [line for name, line in _LINES.items() if name != key]
    return "\n".join([*lines, *([] if change.startswith("-") else [change])]) + "\n"


def _we_take(text: str) -> bool:
    try:
        parse_job(text)
    except SpecError:
        return False
    return True


@pytest.mark.parametrize("change", TAKEN)
def test_what_azure_takes_we_take(sdk: Reader, change: str) -> None:
    assert "job" in sdk(text=_file(change)), "the table is wrong about azure-ai-ml"
    assert _we_take(_file(change))


@pytest.mark.parametrize("change", REFUSED)
def test_what_azure_refuses_we_refuse(sdk: Reader, change: str) -> None:
    assert "refused" in sdk(text=_file(change)), "the table is wrong about azure-ai-ml"
    assert not _we_take(_file(change))


@pytest.mark.parametrize("change", STRICTER)
def test_we_are_stricter_only_where_the_service_would_refuse(sdk: Reader, change: str) -> None:
    assert "job" in sdk(text=_file(change)), "no longer stricter"
    assert not _we_take(_file(change))


@pytest.mark.parametrize("change", LOOSER)
def test_we_are_looser_in_these_ways_and_dump_what_azure_takes(sdk: Reader, change: str) -> None:
    assert "refused" in sdk(text=_file(change)), "no longer looser"
    job = parse_job(_file(change)).model_copy(update={"identity": None})
    assert "job" in sdk(text=dump_job(job))


@pytest.mark.parametrize("path", ["rows/train.jsonl", "./rows/train.jsonl", "../train.jsonl"])
def test_a_path_is_relative_to_the_file_for_both(sdk: Reader, tmp_path: Path, path: str) -> None:
    """Azure documents it so; azure-ai-ml 1.35.2 takes the working directory instead.

    Both agree where the one is the other, and a submission of ours names absolute paths.
    """
    folder = tmp_path / "jobs"
    (folder / "rows").mkdir(parents=True)
    file = folder / "job.yaml"
    file.write_text(_file(f'training_data: {{path: "{path}", type: uri_file}}'))
    theirs = sdk(file=str(file), cwd=str(folder))
    ours = load_job(file).training_data.local_path(folder)
    assert (Path(theirs["base"]) / _bare(theirs["job"]["training_data"]["path"])).resolve() == ours


# --- and nothing is lost on the way -------------------------------------------------------------

_word = st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,30}", fullmatch=True)
_text = st.text(
    st.characters(
        exclude_categories=["Cc", "Cs", "Cn", "Co", "Zl", "Zp"], exclude_characters="\ufeff"
    ),
    min_size=1,
    max_size=40,
) | st.sampled_from(
    ["2e-5", "1", "true", "null", "~", "yes", "0x10", "1:30", "2024-01-01", "a: b", "#x", " x "]
)
_map = st.dictionaries(_text, st.none() | _text, max_size=4)
_mode = st.sampled_from(get_args(InputMode))
_path = st.one_of(
    _word.map("azureml:{}:1".format),
    _word.map("azureml:{}@latest".format),
    _word.map("azureml://datastores/workspaceblobstore/paths/{}.jsonl".format),
    _word.map("https://host/{}.jsonl".format),
    _word.map("./{}.jsonl".format),
    _word.map("/data/{}.jsonl".format),
)
_KNOBS = {
    "learning_rate": ["0.00002", "2e-5", "5E-6"],
    "num_train_epochs": ["1", "0.5"],
    "lora_r": ["8", "016"],
    "apply_lora": ["true", "FALSE"],
    "lr_scheduler_type": ["cosine", "LINEAR"],
    "seed": ["0", "42"],
}


def _maybe(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keys)


_data = _path | st.builds(
    dict,
    _maybe(type=st.sampled_from(["uri_file", "uri_folder"]), mode=_mode, datastore=_word),
    path=_path,
)
_output = _maybe(
    name=st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,30}", fullmatch=True),
    type=st.sampled_from(["mlflow_model", "custom_model", "uri_folder"]),
    path=_word.map("azureml://datastores/workspaceblobstore/paths/{}".format),
    mode=st.sampled_from(get_args(OutputMode)),
    version=st.integers(1, 99).map(str),
).filter(lambda output: "name" in output or "version" not in output)
_files = st.builds(
    dict,
    _maybe(
        name=_word,
        display_name=_text,
        experiment_name=_text,
        description=_text,
        tags=_map,
        properties=_map,
        validation_data=_data,
        hyperparameters=_maybe(
            **{key: st.none() | st.sampled_from(values) for key, values in _KNOBS.items()}
        ),
        outputs=st.dictionaries(st.just("registered_model") | _word, _output, max_size=2),
        compute=_word | _word.map("azureml:{}".format),
        resources=st.lists(_word, max_size=3).map(lambda types: {"instance_types": types}),
        queue_settings=_maybe(
            job_tier=st.sampled_from(["Spot", "basic", "STANDARD", "premium", "null"]),
            priority=st.sampled_from(["low", "Medium", "HIGH"]),
        ),
    ),
    type=st.just("finetuning"),
    model_provider=st.just("custom"),
    task=st.sampled_from([*TASKS, "chatCompletion", "textCompletion"]),
    model=st.builds(
        dict,
        _maybe(mode=_mode, datastore=_word),
        type=st.sampled_from(["mlflow_model", "custom_model"]),
        path=_word.map("azureml://registries/azureml/models/{}/versions/1".format)
        | _word.map("azureml:{}:1".format),
    ),
    training_data=_data,
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(file=_files)
def test_file_to_ours_to_azures_entity_to_ours_loses_nothing(
    sdk: Reader, file: dict[str, Any]
) -> None:
    """Every field but two: `$schema` is a hint for editors, and `identity` crashes azure-ai-ml."""
    ours = parse_job(yaml.safe_dump(file, allow_unicode=True))
    assert parse_job(dump_job(ours)) == ours
    theirs = sdk(text=dump_job(ours))
    assert "job" in theirs, theirs
    back = parse_job(yaml.safe_dump(theirs["job"], allow_unicode=True))
    assert _canonical(back) == _canonical(ours)


def _canonical(job: FineTuningJob) -> dict[str, Any]:
    """The job without the one thing that azure-ai-ml does not tell apart: a leading `azureml:`.

    Its entity drops that prefix when it loads a file, and its dump puts it before any path.
    """
    raw = job.model_dump(mode="json")
    for key in ("model", "training_data", "validation_data"):
        if raw[key]:
            raw[key]["path"] = _bare(raw[key]["path"])
    if raw["compute"]:
        raw["compute"] = _bare(raw["compute"])
    return raw


def _bare(path: str) -> str:
    return path if path.startswith("azureml://") else path.removeprefix("azureml:")
