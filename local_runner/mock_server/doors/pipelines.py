"""A pipeline job of the chat-completion component in our own words: one fine-tuning job, and its runs."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from local_runner.mock_server.doors import component_door, managed
from local_runner.mock_server.doors.sizes import find_size
from local_runner.mock_server.errors import ServiceError, user_error
from local_runner.mock_server.judge import Accepted, accept, read_job, take
from local_runner.mock_server.store import Body
from local_runner.mock_server.twin import Twin
from local_runner.mock_server.wire import part
from maas_client.spec.catalog import find_model
from maas_client.spec.hyperparameters import KNOBS, read
from maas_client.spec.sizes import SIZES, Size

_BINDING = re.compile(r"\$\{\{parent\.(inputs|outputs)\.([^}]+)\}\}")
_COMPONENT = re.compile(
    r"azureml://registries/([^/]+)/components/([^/]+)/(?:versions|labels)/([^/]+)"
)
_ROOMS = ("model_import", "preprocess", "finetune", "model_evaluation")
"""The steps whose compute can be chosen."""
_UNSERVED = (
    "huggingface_id", "pytorch_model_path", "train_mltable_path", "validation_mltable_path",
    "test_mltable_path",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Node:
    """The pipeline's one node, its inputs as texts."""

    name: str
    component: str
    inputs: dict[str, str]
    bound: dict[str, str]
    """The pipeline's outputs, and which of the node's each is."""


def judge(twin: Twin, name: str, properties: dict[str, Any], folder: Path) -> Accepted:
    """Accept a pipeline job, or refuse it as the service would; arguments are `judge.judge`'s.

    Raises:
        ServiceError: with the service's status, codes and text.
    """
    node = _node(properties)
    _check_inputs(node)
    values = {
        key: given["default"]
        for key, given in component_door.component()["inputs"].items()
        if "default" in given
    } | node.inputs
    _check_machines(twin, values)
    accepted = accept(twin, read_job(_job(name, properties, values, node.inputs)), folder)
    if test := values.get("test_file_path"):
        take(twin, test, "test_file_path", folder / "test_data.jsonl")
    pipeline = {"node": node.name, "component": node.component, "bound": node.bound}
    return replace(accepted, pipeline=pipeline)


def essence(wire: dict[str, Any]) -> list[Any]:
    """What makes two pipelines the same."""
    if wire.get("jobType") != "Pipeline":
        return []
    node = _node(wire)
    return [node.component, node.inputs, node.bound]


def remember_runs(twin: Twin, job: Body) -> None:
    """Name the runs inside a pipeline: the node's, and those of its component's steps."""
    if "pipeline" not in job:
        return
    node = twin.dice.uuid()
    inner = {node: {"parent": job["name"], "step": job["pipeline"]["node"]}}
    for step in component_door.component()["steps"]:
        inner[twin.dice.uuid()] = {"parent": node, "step": step}
    for name in inner:
        twin.store.put("run", name, {"job": job["key"]})
    twin.store.change("job", job["key"], pipeline=job["pipeline"] | {"runs": inner})


def forget_runs(twin: Twin, job: Body) -> None:
    """Drop the names of the runs inside a pipeline that is deleted."""
    for name in job.get("pipeline", {}).get("runs", ()):
        twin.store.delete("run", name)


def find_run(twin: Twin, name: str) -> Body | None:
    """A run inside a pipeline: the pipeline's job under the run's name."""
    key = name.lower()
    run = twin.store.get("run", key)
    job = twin.store.get("job", run["job"]) if run else None
    if job is None:
        return None
    return {**job, "name": key, "root": job["name"], "inner": job["pipeline"]["runs"][key]}


def children(twin: Twin, job: Body) -> list[Body]:
    """The runs right below a pipeline's run, in their order."""
    runs = job.get("pipeline", {}).get("runs", {})
    below = [name for name, inner in runs.items() if inner["parent"] == job["name"]]
    return [run for name in below if (run := find_run(twin, name)) is not None]


def _node(properties: dict[str, Any]) -> Node:
    jobs = part(properties, "jobs")
    if not jobs:
        raise user_error("The pipeline has no jobs.", inner="MissingPipelineJobs")
    if len(jobs) > 1:
        raise user_error(
            f"The mock runs one node of a pipeline, and there are {len(jobs)}: {', '.join(jobs)}.",
            inner="UnsupportedPipeline",
        )
    name = next(iter(jobs))
    raw = part(jobs, name)
    part(properties, "settings")
    return Node(
        name,
        _component(raw.get("componentId")),
        _inputs(part(raw, "inputs"), part(properties, "inputs")),
        _bound(name, part(raw, "outputs"), part(properties, "outputs")),
    )


def _component(given: Any) -> str:
    match = _COMPONENT.fullmatch(str(given))
    if match is None:
        raise ServiceError(
            404, "UserError", f"Component {given} was not found.", inner="ComponentNotFound"
        )
    return component_door.component_id(component_door.known_version(*match.groups()))


def _inputs(raw: dict[str, Any], parents: dict[str, Any]) -> dict[str, str]:
    """Each input's text: a literal's, or where its data are. Bindings are followed to the pipeline's."""
    found = {}
    for key, given in raw.items():
        value = given
        if isinstance(given, dict):
            value = given.get("uri") or given.get("value")
        if match := _BINDING.fullmatch(str(value)):
            if match[2] not in parents:
                raise user_error(
                    f"Input {key} is bound to the pipeline's input {match[2]}, which is not there.",
                    inner="InvalidInputBinding",
                )
            outer = parents[match[2]]
            value = outer.get("uri") or outer.get("value") if isinstance(outer, dict) else outer
        if value is not None:
            found[key] = str(value)
    return found


def _bound(node: str, raw: dict[str, Any], wanted: dict[str, Any]) -> dict[str, str]:
    """The pipeline's outputs, and which of the node's each is."""
    known, bound = component_door.component()["outputs"], {}
    for key in raw:
        if key not in known:
            raise user_error(
                f"Node {node} has no output {key}; it has {', '.join(known)}.",
                inner="UnknownComponentOutput",
            )
        match = _BINDING.fullmatch(str(part(raw, key).get("value")))
        if match and match[2] in wanted:
            bound[match[2]] = key
    for key in wanted:
        part(wanted, key)
    if missing := sorted(set(wanted) - set(bound)):
        raise user_error(
            f"The pipeline's output {missing[0]} is bound to no node's output.",
            inner="InvalidOutputBinding",
        )
    return bound


def _check_inputs(node: Node) -> None:
    known = component_door.component()["inputs"]
    for key, text in node.inputs.items():
        if key not in known:
            raise user_error(
                f"Input {key} of node {node.name} is not an input of {node.component}.",
                inner="UnknownComponentInput",
            )
        if key in _UNSERVED:
            raise user_error(f"Input {key} is not served by the mock.", inner="UnsupportedInput")
        if fault := _fault(known[key], text):
            raise user_error(
                f"Input {key} of node {node.name} is {text!r}: {fault}.", inner="InvalidInputValue"
            )
    for key in ("mlflow_model_path", "train_file_path"):
        if not node.inputs.get(key):
            raise user_error(
                f"Required input {key} of node {node.name} is missing.", inner="MissingInput"
            )


def _fault(known: dict[str, Any], text: str) -> str:
    """What is wrong with an input's text; nothing where it is well."""
    if "enum" in known and text not in known["enum"]:
        return f"not one of {', '.join(known['enum'])}"
    if known["type"] not in ("integer", "number"):
        return ""
    try:
        value = int(text) if known["type"] == "integer" else float(text)
    except ValueError:
        return f"not {'an integer' if known['type'] == 'integer' else 'a number'}"
    if not math.isfinite(value):
        return "not a number"
    if "min" in known and value < float(known["min"]):
        return f"less than {known['min']}"
    return ""


def _check_machines(twin: Twin, values: dict[str, str]) -> None:
    """Every step's compute is there, and has the nodes and GPUs that the job counts on."""
    for room in _ROOMS:
        compute, kind = values[f"compute_{room}"], values[f"instance_type_{room}"]
        if compute.lower() == managed.SERVERLESS:
            size, nodes = find_size(kind, twin.site.region), None
        else:
            found = managed.find_compute(twin, compute)
            size, nodes = SIZES[found["size"].lower()], int(found["most"])
        if room == "finetune":
            _check_counts(values, size, nodes)


def _check_counts(values: dict[str, str], size: Size, nodes: int | None) -> None:
    gpus, wanted = int(values["number_of_gpu_to_use_finetuning"]), int(values["num_nodes_finetune"])
    if gpus > size.gpus:
        raise user_error(
            f"number_of_gpu_to_use_finetuning is {gpus}, and {size.name} has {size.gpus}.",
            inner="InvalidGpuCount",
        )
    if nodes is not None and wanted > nodes:
        raise user_error(
            f"num_nodes_finetune is {wanted}, and the compute grows to {nodes}.",
            inner="InvalidNodeCount",
        )


def _knobs(values: dict[str, str], given: dict[str, str]) -> dict[str, str]:
    """The hyperparameters that are given, and the component's defaults where any others would count."""
    match = re.search(r"/models/([^/]+)", values["mlflow_model_path"])
    entry = find_model(match[1]) if match else None
    models = entry.defaults if entry else {}
    return {
        key: text
        for key, text in values.items()
        if key in KNOBS
        and (key in given or key in models or read(KNOBS[key], text) != KNOBS[key].default)
    }


def _job(
    name: str, properties: dict[str, Any], values: dict[str, str], given: dict[str, str]
) -> dict[str, Any]:
    """The pipeline as a job file."""
    compute = values["compute_finetune"]
    serverless = compute.lower() == managed.SERVERLESS
    validation = values.get("validation_file_path")
    return {
        "name": name,
        "display_name": properties.get("displayName"),
        "experiment_name": properties.get("experimentName"),
        "description": properties.get("description"),
        "tags": properties.get("tags") or {},
        "properties": properties.get("properties") or {},
        "task": "chat_completion",
        "model_provider": "custom",
        "model": {"path": values["mlflow_model_path"], "type": "mlflow_model"},
        "training_data": {"path": values["train_file_path"], "type": "uri_file"},
        "validation_data": {"path": validation, "type": "uri_file"} if validation else None,
        "hyperparameters": _knobs(values, given),
        # Nothing is registered under it; but a job without such an output is refused.
        "outputs": {"registered_model": {"name": "pipeline", "type": "mlflow_model"}},
        "compute": None if serverless else compute,
        "resources": {"instance_types": [values["instance_type_finetune"]]} if serverless else None,
    }
