"""What a job file can say to Kaito, and the nearest to what it cannot. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from maas_client.settings import KaitoSettings
from maas_client.spec import dataset
from maas_client.spec.catalog import ModelEntry, catalog, find_model
from maas_client.spec.hyperparameters import KNOBS
from maas_client.spec.job import FineTuningJob
from maas_client.spec.limits import Limits
from maas_client.spec.sizes import SIZES
from maas_client.targets.kaito import rules
from maas_client.targets.kaito.config import KEYS, PRECISIONS
from maas_client.targets.kaito.presets import PRESETS, preset

MOST_INLINE = 1_000_000
"""Bytes of rows that go into a ConfigMap, of which Kubernetes takes 1 MiB."""

LONGEST_NAME = 54
"""Characters of a job's name: a Workspace has 63, and `--new` adds nine."""

_ONE_NODE = "Kaito runs the job on one node with accelerate; the result does not depend on it"
_IGNORED: Mapping[str, str] = {
    "apply_deepspeed": _ONE_NODE,
    "deepspeed_stage": _ONE_NODE,
    "apply_ort": "the kernels are PyTorch's; the result does not depend on it",
}

_NO_EVALUATION = (
    "Kaito's program has no validation rows of their own; num_train_epochs says how long to train, "
    "and `maas evaluate RUN --data FILE` measures the adapter here"
)
_LENGTH = "Kaito's trainer has a limit of its own, under a name that depends on its version"
_METHOD = "Kaito's methods are lora, and qlora with load_in_4bit"
_NEAREST: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "per_device_eval_batch_size",
            "evaluation_strategy",
            "eval_steps",
            "apply_early_stopping",
            "early_stopping_patience",
            "early_stopping_threshold",
        ),
        _NO_EVALUATION,
    ),
    **dict.fromkeys(("use_dora", "use_rslora"), _METHOD),
    "max_seq_length": f"{_LENGTH}; cut the rows themselves",
    "packing": f"{_LENGTH}; per_device_train_batch_size fills the GPU",
    "merge_lora_weights": "Kaito leaves an adapter; `maas export` merges it here",
    "resume_from_checkpoint": "its program starts at the first step; save_strategy keeps checkpoints",
}
_NO_NEAREST = "training_config.yaml has no key of its own for it"

_JOB_KEYS: Mapping[str, str] = {
    "validation_data": _NO_EVALUATION,
    "compute": "instance_type of the target, or one name in resources.instance_types, says which node",
    "queue_settings": "the cluster's own scheduler decides",
    "identity": "the job runs with the cluster's accounts",
}


def limits(job: FineTuningJob, settings: KaitoSettings) -> Limits:
    """What can be said of this job to a cluster's Kaito, and how."""
    entry = find_model(job.model.asset_name)
    refused = {
        key: f"it cannot be said to Kaito: {_NEAREST.get(key, _NO_NEAREST)}; remove it"
        for key in KNOBS
        if key not in KEYS and key not in _IGNORED and key not in ("apply_lora", "peft_method")
    }
    elsewhere = settings.data_claim or settings.data_image
    return Limits(
        target=settings.name,
        model=entry,
        honoured=frozenset(KEYS) | {"apply_lora", "peft_method"},
        ignored=_IGNORED,
        refused=refused,
        said={
            key: f"said as {'.'.join(place)}"
            for key, place in KEYS.items()
            if place != ("TrainingArguments", key)
        },
        choices={
            "precision": PRECISIONS,
            "apply_lora": ("true",),
            "peft_method": ("lora",),
            "optim": tuple(name for name in KNOBS["optim"].choices if name != "adamw_hf"),
        },
        tasks=("chat_completion",),
        max_bytes=dataset.MAX_BYTES if elsewhere else MOST_INLINE,
        size_hint=(
            "a ConfigMap holds no more. Name an https address as the path, or put the file into a "
            "PersistentVolumeClaim (data_claim of the target) or an image (data_image)"
        ),
        refusals=tuple(_refusals(job, entry, settings)),
        warnings=tuple(_warnings(job, entry, settings)),
    )


def instance_type(job: FineTuningJob, settings: KaitoSettings) -> str:
    """The size of node: the job file's word before the target's. Empty: the cluster's own nodes."""
    named = job.resources.instance_types if job.resources else ()
    return named[0] if named else settings.instance_type


def _refusals(
    job: FineTuningJob, entry: ModelEntry | None, settings: KaitoSettings
) -> Iterable[str]:
    if entry is None or preset(entry) is None:
        yield (
            f"{job.model.asset_name} has no preset for tuning in Kaito. It has: "
            f"{', '.join(known.name for known in catalog().values() if preset(known))}."
        )
    for key, instead in _JOB_KEYS.items():
        if getattr(job, key):
            yield f"{key} cannot be said to Kaito: {instead}; remove it."
    yield from _name_refusals(job)
    yield from _size_refusals(job, settings)
    if job.training_data.is_remote and (fault := _address_fault(job.training_data.path)):
        yield f"training_data.path: {fault}."
    yield from _place_refusals(settings)


def _name_refusals(job: FineTuningJob) -> Iterable[str]:
    if job.name is None:
        return
    fault = rules.label_fault(job.name)
    if fault is None and len(job.name) > LONGEST_NAME:
        fault = f"{job.name!r} has {len(job.name)} characters; at most {LONGEST_NAME} here"
    if fault:
        yield f"name: {fault}. --name gives another."


def _size_refusals(job: FineTuningJob, settings: KaitoSettings) -> Iterable[str]:
    if job.resources and len(job.resources.instance_types) != 1:
        yield "resources.instance_types: Kaito takes one size; name one."
    if (size := instance_type(job, settings)) and (fault := rules.instance_fault(size)):
        yield f"The instance type: {fault}."


def _place_refusals(settings: KaitoSettings) -> Iterable[str]:
    """What is wrong with the target's own words."""
    where = f"[targets.{settings.name}] of maas.toml"
    if bool(settings.output_image) == bool(settings.output_claim):
        yield f"{where} needs exactly one of output_image and output_claim: where the adapter goes."
    if settings.output_image and not settings.output_secret:
        yield f"{where} needs output_secret: the secret that may push to {settings.output_image}."
    if settings.data_claim and settings.data_image:
        yield f"{where} has data_claim and data_image; the rows are in one of them."
    for key in ("output_image", "data_image"):
        image = getattr(settings, key)
        if image and (fault := rules.image_fault(image)):
            yield f"{where}: {key}: {fault}."
    if (image := settings.output_image) and (":" in image.rpartition("/")[2] or "@" in image):
        yield f"{where}: output_image names a tag; leave it out: each job's name is its tag."
    if not selector(settings):
        yield f"{where}: node_selector is {settings.node_selector!r}; write key=value, with commas between."


def selector(settings: KaitoSettings) -> dict[str, str]:
    """The labels of the nodes; nothing where they cannot be read."""
    pairs = [pair.strip().partition("=") for pair in settings.node_selector.split(",")]
    if not all(key and equals and value for key, equals, value in pairs):
        return {}
    return {key: value for key, _, value in pairs}


def _address_fault(url: str) -> str | None:
    if fault := rules.url_fault(url):
        return (
            f"{url}: {fault}; Kaito reads rows from an http or https address that its nodes reach"
        )
    parts = urlsplit(url)
    if any(letter.isspace() for letter in url):
        return f"{url!r} has a space, at which Kaito would cut it; write %20"
    if "/" in parts.query or "/" in parts.fragment:
        return (
            f"{url}: Kaito names the file after the last slash; write %2F after the question mark"
        )
    if "json" not in parts.path.rpartition("/")[2].lower():
        return f"{url} does not end in a file name with .jsonl, by which Kaito knows what it is"
    return None


def _warnings(
    job: FineTuningJob, entry: ModelEntry | None, settings: KaitoSettings
) -> Iterable[str]:
    yield (
        "Kaito trains every token of a conversation, the questions too, and cuts long rows at a limit of "
        "its own; the other targets train the answers alone."
    )
    if job.registered_model:
        yield (
            "outputs.registered_model: Kaito registers nothing; the adapter goes to "
            f"{settings.output_image or settings.output_claim}, and the name stays with the job."
        )
    if job.model.version is not None:
        yield f"The version ({job.model.version}) cannot be said to Kaito: it has weights of its own."
    size = instance_type(job, settings)
    known = SIZES.get(size.lower())
    need = PRESETS.get(preset(entry) or "", 0) if entry else 0
    if known and known.gpus and known.gpu_memory // known.gpus < need:
        yield (
            f"{size} has {known.gpu_memory // known.gpus} GB on a GPU; Kaito states {need} for tuning "
            f"{job.model.asset_name}. With load_in_4bit it may fit."
        )
    if settings.output_claim:
        yield (
            f"The claim {settings.output_claim} gets the adapter at its root; one of an earlier job is "
            "overwritten, and `maas jobs download` cannot read a claim."
        )
    elsewhere = settings.data_claim or settings.data_image
    if elsewhere and not job.training_data.is_remote:
        yield f"The rows are checked here and read from {elsewhere}: the file has to be there already."
    if size:
        yield "The GPU node is paid for until the Workspace is deleted: kubectl delete workspace NAME."
