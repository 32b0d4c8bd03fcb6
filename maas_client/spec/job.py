"""FineTuningJob: what the user wants, in Azure ML's own words, field for field.

Source: the schema that azure-ai-ml 1.35.2 loads `type: finetuning` files with
(`CustomModelFineTuningSchema`), tried key by key.
"""

from __future__ import annotations

import re
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

Task = Literal[
    "chat_completion",
    "text_completion",
    "text_classification",
    "question_answering",
    "text_summarization",
    "token_classification",
    "text_translation",
    "image_classification",
    "image_instance_segmentation",
    "image_object_detection",
    "video_multi_object_tracking",
]
"""The tasks that Azure ML's schema knows. Which of them a model or target can do is its limits' word."""

READ_ONLY_KEYS = ("status", "services", "creation_context", "id", "log_files")
"""Keys of a dumped job that only the service writes: tolerated, and dropped."""

InputMode = Literal["ro_mount", "download", "direct"]
OutputMode = Literal["rw_mount", "mount", "upload", "direct"]

_REMOTE = re.compile(r"^(azureml|https?|wasbs?|abfss?|adl):")
_CAMEL = re.compile(r"(?<=[a-z])([A-Z])")
NAME = re.compile(r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}\Z")
"""What Azure ML takes as the name of a job, model or data asset."""
_OUTPUT_NAME = re.compile(r"^[a-zA-Z0-9][a-zA-Z0-9_-]{0,254}\Z")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, strict=True)


def _any_case(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


AnyCase = BeforeValidator(_any_case)
"""Where azure-ai-ml takes a word in capitals too."""


class DataInput(_Strict):
    """Where the rows are: a local path, an `azureml:` reference or a URL."""

    path: str
    type: Annotated[Literal["uri_file", "uri_folder"], AnyCase] = "uri_file"
    mode: Annotated[InputMode | None, AnyCase] = None
    datastore: str | None = None
    """Where local rows are uploaded to; the workspace's default store without it."""

    @property
    def is_remote(self) -> bool:
        """Whether the rows are somewhere else than on this disk."""
        return bool(_REMOTE.match(self.path)) or self.path.startswith("/subscriptions/")

    def local_path(self, folder: Path) -> Path:
        """The file on this disk; relative paths are relative to the job file's folder."""
        return (folder / self.path.removeprefix("file://").removeprefix("file:")).resolve()


class ModelInput(_Strict):
    """The base model, an asset of a registry or workspace."""

    path: str
    type: Annotated[Literal["mlflow_model", "custom_model"], AnyCase] = "mlflow_model"
    mode: Annotated[InputMode | None, AnyCase] = None
    datastore: str | None = None

    @property
    def asset_name(self) -> str:
        """`Phi-3-mini-4k-instruct` of `azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/15`."""
        return _model_parts(self.path)[0]

    @property
    def version(self) -> str | None:
        """`15` of the same; None for `@latest`, a bare name, or a label."""
        return _model_parts(self.path)[1]


class JobOutput(_Strict):
    """What the job leaves behind."""

    name: str | None = None
    type: Annotated[
        Literal[
            "mlflow_model", "custom_model", "uri_folder", "uri_file", "mltable", "triton_model"
        ],
        AnyCase,
    ] = "uri_folder"
    path: str | None = None
    mode: Annotated[OutputMode | None, AnyCase] = None
    version: str | None = None

    @field_validator("name")
    @classmethod
    def _name(cls, name: str | None) -> str | None:
        # Narrower than other names: azure-ai-ml refuses a dot here.
        if name is not None and not _OUTPUT_NAME.match(name):
            raise ValueError(
                "an output's name starts with a letter or digit and has at most 255 letters, digits, "
                "'-' or '_', and no dot"
            )
        return name

    @field_validator("version", mode="before")
    @classmethod
    def _version(cls, value: Any) -> Any:
        # azure-ai-ml takes a bare number here, and nowhere else.
        return str(value) if type(value) is int else value

    @model_validator(mode="after")
    def _version_has_a_name(self) -> JobOutput:
        if self.version and not self.name:
            raise ValueError("a version needs a name")
        return self


class JobResources(_Strict):
    """The machine sizes a managed-compute job may use."""

    instance_types: Annotated[tuple[str, ...], Field(strict=False)]


class QueueSettings(_Strict):
    """How urgent a managed-compute job is."""

    job_tier: Annotated[Literal["spot", "basic", "standard", "premium", "null"] | None, AnyCase] = (
        None
    )
    priority: Annotated[Literal["low", "medium", "high"] | None, AnyCase] = None


class Identity(_Strict):
    """Who the job runs as."""

    type: Literal["aml_token", "managed", "managed_identity", "user_identity"]
    client_id: str | None = None
    object_id: str | None = None
    msi_resource_id: str | None = None
    resource_id: str | None = None


class FineTuningJob(_Strict):
    """What the user wants. A file that `az ml job create --file` accepts is accepted unchanged."""

    schema_url: str | None = Field(default=None, alias="$schema")
    type: Literal["finetuning"] = "finetuning"
    name: str | None = None
    """The job's id. Left out, one is made at submission."""
    display_name: str | None = None
    experiment_name: str | None = None
    description: str | None = None
    tags: dict[str, str | None] = {}
    properties: dict[str, str | None] = {}
    task: Task
    model_provider: Literal["custom"]
    model: ModelInput
    training_data: DataInput
    validation_data: DataInput | None = None
    hyperparameters: dict[str, str | None] = {}
    """The field's standard names, every value a string (`"0.00002"`), as on the wire."""
    outputs: dict[str, JobOutput] = {}
    compute: str | None = None
    resources: JobResources | None = None
    queue_settings: QueueSettings | None = None
    identity: Identity | None = None

    @field_validator("name")
    @classmethod
    def _name(cls, name: str | None) -> str | None:
        return _checked_name(name)

    @field_validator("task", mode="before")
    @classmethod
    def _snake_task(cls, task: Any) -> Any:
        # azure-ai-ml takes chatCompletion as well as chat_completion, and nothing else.
        return (
            _CAMEL.sub(r"_\1", task).lower()
            if isinstance(task, str) and task[:1].islower()
            else task
        )

    @field_validator("model", "training_data", "validation_data", mode="before")
    @classmethod
    def _path_or_mapping(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("tags", "properties", "hyperparameters", "outputs", mode="before")
    @classmethod
    def _absent_is_empty(cls, value: Any) -> Any:
        return {} if value is None else value

    @field_validator("outputs", mode="before")
    @classmethod
    def _absent_output(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: output for key, output in value.items() if output is not None}

    @model_validator(mode="before")
    @classmethod
    def _drop_read_only(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if key not in READ_ONLY_KEYS}

    @property
    def registered_model(self) -> str | None:
        """The name under which the result will be registered."""
        output = self.outputs.get("registered_model")
        return output.name if output else None

    @property
    def managed_compute(self) -> bool:
        """Whether the job asks for machines of its own (MaaP) instead of the serverless service (MaaS)."""
        return bool(
            self.compute
            or (self.resources and self.resources.instance_types)
            or self.queue_settings
        )

    def to_dict(self) -> dict[str, Any]:
        """The job as a mapping that azure-ai-ml's `load_job` accepts; absent keys are left out."""
        dumped = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        for key in ("tags", "properties", "hyperparameters"):
            dumped[key] = getattr(self, key)  # a null among the values is a value
        # An empty mapping of these says nothing; empty queue_settings ask for managed compute.
        maps = ("tags", "properties", "hyperparameters", "outputs")
        return {key: value for key, value in dumped.items() if value or key not in maps}

    def rebased(self, old: Path, new: Path) -> FineTuningJob:
        """The same job, its local paths rewritten so that a file in `new` still finds the rows."""
        moved = {
            key: data.model_copy(update={"path": _relative(data.local_path(old), new)})
            for key in ("training_data", "validation_data")
            if (data := getattr(self, key)) is not None and not data.is_remote
        }
        return self.model_copy(update=moved)


def _relative(path: Path, folder: Path) -> str:
    try:
        return path.relative_to(folder.resolve()).as_posix()
    except ValueError:
        return str(path)


def _checked_name(name: str | None) -> str | None:
    if name is not None and not NAME.match(name):
        raise ValueError(
            "a name starts with a letter or digit and has at most 255 letters, digits, '-', '_' or '.'"
        )
    return name


def _model_parts(path: str) -> tuple[str, str | None]:
    """Name and version out of any way to write a model asset."""
    if match := re.search(r"/models/([^/]+)(?:/(?:versions|labels)/([^/]+))?/?$", path):
        labelled = "/labels/" in path
        return match[1], None if labelled else match[2]
    name = path.removeprefix("azureml:")
    if re.match(r"^[^:/@]+:[^:/]+$", name):
        name, _, version = name.partition(":")
        return name, version
    name = name.partition("@")[0]
    return PureWindowsPath(name).name or name, None
