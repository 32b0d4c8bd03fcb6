"""`--base` -> a folder with safetensors, a tokenizer and a chat template, and what it is in words."""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from local_runner.models import checkpoint, family, stand_in, tiny, tiny_small
from local_runner.models.shape import shape_of
from maas_client.errors import BaseModelError
from maas_client.plan import BaseInfo, Plan
from maas_client.spec.catalog import find_model
from maas_client.spec.home import home
from maas_client.spec.rundir import file_digest, read_json, write_json

_HEAD = "lm_head.weight"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_BASES = {"tiny": tiny, "tiny-phi-3-small": tiny_small}
"""Random models that are made on first use, by the word that `--base` takes."""
_IDENTITY = ("config.json", *TOKENIZER_FILES, "*.tiktoken")


@dataclass(frozen=True, slots=True)
class Base:
    """A base model on this disk."""

    folder: Path
    info: BaseInfo
    name: str
    """What an adapter says that it belongs to; the same on every machine."""
    model: str = ""
    """The job's model: it says what the folder's tokenizer lacks."""


def resolve(base: str | None, *, model: str) -> Base:
    """Find the weights.

    Args:
        base: a folder, a hub id, `stand-in`, `tiny` or `tiny-phi-3-small`; None takes the
            catalogue's hub id of `model`.
        model: the job's base model, by its name in the catalogue.

    Raises:
        BaseModelError: there are none; the message names `--base stand-in`.
    """
    return replace(_found(base, model), model=model)


def _found(base: str | None, model: str) -> Base:
    if base == "stand-in":
        folder = stand_in.install()
        return _base(folder, "stand-in", stand_in.LABEL, stand_in.NAME, stand_in=True)
    if base in _BASES:
        made = _BASES[base]
        return _base(made.install(), base, made.LABEL, made.NAME, stand_in=True)
    if base is not None and (folder := Path(base).expanduser().resolve()).is_dir():
        return _base(folder, str(folder), f"the weights in {folder}", folder.name)
    if base is not None and not _HUB_ID.fullmatch(base):
        raise BaseModelError(
            f"{base}: there is no such folder of weights",
            hint="Name a folder, a hub id such as microsoft/Phi-3-mini-4k-instruct, or stand-in.",
        )
    hub_id = base or _hub_id(model)
    return _base(_from_hub(hub_id), hub_id, hub_id, hub_id)


def load(base: Base, *, dtype: str = "float32", quantization: Any = None) -> Any:
    """The model on the CPU, without gradients.

    The heads of its files are read first: nothing is loaded of a checkpoint that is not whole. Weights that
    are stored in `dtype` stay where they are, mapped from the file until they are written to.

    Args:
        base: where it is.
        dtype: `float32`, `bfloat16` or `float16`.
        quantization: how transformers is to round the projections while it reads them.

    Raises:
        BaseModelError: it is no architecture of the family, its files are broken, or a weight is not finite.
    """
    from safetensors import SafetensorError
    from transformers.utils import logging

    from local_runner.models.rotary import MoeRotary  # like the two above, it brings torch

    logging.disable_progress_bar()  # the runner's output is JSON lines and words, not bars
    config = read_config(base.folder)
    kind = family.architecture(config.get("model_type"), base.info.label)
    if config.get("quantization_config"):
        raise BaseModelError(
            f"{base.folder}: config.json has a quantization_config; the runner loads plain weights",
            hint="Name the checkpoint that it was made from.",
        )
    cls = family.model_class(kind.name)
    try:
        shape = family.model_config(kind.name, config)
        _check_tensors(base.folder, cls, shape)
        model = cls.from_pretrained(
            base.folder,
            config=shape,
            dtype=dtype,
            quantization_config=quantization,
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
        )
    except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise BaseModelError(f"{base.folder} cannot be loaded: {error}") from error
    if kind.name == "phimoe" and model.config.rope_parameters["rope_type"] != "default":
        model.model.rotary_emb = MoeRotary(model.config)
    _check_numbers(base.folder, model)
    model.requires_grad_(requires_grad=False)
    return model


def held_in(plan: Plan) -> str | None:
    """What the weights are stored in, where they are streamed; None where they are not."""
    shape = plan.base.shape if plan.base else None
    return shape.stored if shape and plan.thrift and plan.thrift.streamed else None


def _check_tensors(folder: Path, cls: Any, shape: Any) -> None:
    """Names and shapes, file by file, against the model that config.json describes."""
    import torch

    found = checkpoint.stored(folder)
    with torch.device("meta"):
        empty = cls(shape)
    tied = [_HEAD] if shape.tie_word_embeddings else []
    checkpoint.compare(folder, found, family.checkpoint_shapes(empty), optional=tied)


def _check_numbers(folder: Path, model: Any) -> None:
    """Whether every weight is finite, and a tied head is one."""
    for name, weight in model.named_parameters():
        low, high = weight.aminmax()  # a NaN anywhere is both
        if not (low.isfinite() and high.isfinite()):
            raise BaseModelError(
                f"{folder}: {name} holds numbers that are not finite",
                hint="Download the model again, or take the checkpoint before it.",
            )
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if model.config.tie_word_embeddings and head.weight is not embeddings.weight:
        raise BaseModelError(
            f"{folder}: config.json ties {_HEAD} to the embeddings, but another one is stored",
            hint="Set tie_word_embeddings to false in config.json, or remove the tensor.",
        )


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        file = folder / "config.json"
        raise BaseModelError(f"{file}: {error.strerror}", hint="Is it a model folder?") from error
    except ValueError as error:
        file = folder / "config.json"
        raise BaseModelError(f"{file} is not JSON: {error}", hint="Download it again.") from error
    return dict(config)


def _base(folder: Path, source: str, label: str, name: str, *, stand_in: bool = False) -> Base:
    digest, shape = _digest(folder), shape_of(folder)
    return Base(folder, BaseInfo(source, label, digest, stand_in=stand_in, shape=shape), name)


def _digest(folder: Path) -> str:
    """sha256 over weights, config and tokenizer."""
    read_config(folder)
    others = [folder / name for name in _IDENTITY if (folder / name).exists()]
    files = sorted([*checkpoint.weight_files(folder), *others])
    # Hashing gigabytes takes many seconds: a digest is kept for as long as no file is touched.
    seen = [[f.name, (stat := f.stat()).st_size, stat.st_mtime_ns, stat.st_ino] for f in files]
    place = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    note = home() / "digests" / f"{place}.json"
    if note.exists() and (kept := read_json(note)).get("files") == seen:
        return str(kept["sha256"])
    lines = "".join(f"{file.name} {file_digest(file)}\n" for file in files)
    digest = hashlib.sha256(lines.encode()).hexdigest()
    with suppress(OSError):  # a home that cannot be written costs time only
        write_json(note, {"folder": str(folder), "files": seen, "sha256": digest})
    return digest


def _hub_id(model: str) -> str:
    entry = find_model(model)
    if entry is None:
        raise BaseModelError(
            f"the catalogue does not know {model!r}, so its weights cannot be found",
            hint="Name them with --base: a folder or a hub id; or try --base stand-in.",
        )
    return entry.hub_id


def _from_hub(hub_id: str) -> Path:
    """The model's folder in the Hugging Face cache, fetched where it is not there yet."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # Phi-3-small's tokenizer is a list of ranks; code that a repository brings is not even fetched.
    patterns = ["*.safetensors", "*.json", "*.jinja", "*.tiktoken"]
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    try:
        with suppress(OSError):  # the cache first: an offline look-up costs 20 s
            folder = Path(snapshot_download(hub_id, local_files_only=True))
            if offline or _is_whole(folder):
                return folder
        return Path(snapshot_download(hub_id, allow_patterns=patterns, local_files_only=offline))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        raise BaseModelError(
            f"the weights of {hub_id} are not on this machine and cannot be fetched",
            hint="Name them with --base FOLDER, or use --base stand-in: a small real model in the "
            "Phi-3 architecture.",
        ) from error


def _is_whole(folder: Path) -> bool:
    """Whether every weight file of the snapshot is there."""
    with suppress(BaseModelError):
        return bool(checkpoint.weight_files(folder))
    return False
