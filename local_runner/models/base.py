"""`--base` -> a folder with safetensors, a tokenizer and a chat template, and what it is in words."""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from local_runner.models import stand_in, tiny
from maas_client.errors import BaseModelError
from maas_client.plan import BaseInfo
from maas_client.spec.catalog import find_model
from maas_client.spec.home import home
from maas_client.spec.rundir import file_digest, read_json, write_json

if TYPE_CHECKING:
    from transformers import Phi3ForCausalLM

_WEIGHTS = ("*.safetensors",)
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
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
        base: a folder, a hub id, `stand-in` or `tiny`; None takes the catalogue's hub id of `model`.
        model: the job's base model, by its name in the catalogue.

    Raises:
        BaseModelError: there are none; the message names `--base stand-in`.
    """
    return replace(_found(base, model), model=model)


def _found(base: str | None, model: str) -> Base:
    if base == "stand-in":
        folder = stand_in.install()
        return _base(folder, "stand-in", stand_in.LABEL, stand_in.NAME, stand_in=True)
    if base == "tiny":
        return _base(tiny.install(), "tiny", tiny.LABEL, tiny.NAME, stand_in=True)
    if base is not None and (folder := Path(base).expanduser().resolve()).is_dir():
        return _base(folder, str(folder), f"the weights in {folder}", folder.name)
    if base is not None and not _HUB_ID.fullmatch(base):
        raise BaseModelError(
            f"--base {base}: there is no such folder",
            hint="Name a folder, a hub id such as microsoft/Phi-3-mini-4k-instruct, or stand-in.",
        )
    hub_id = base or _hub_id(model)
    return _base(_from_hub(hub_id), hub_id, hub_id, hub_id)


def load(base: Base) -> Phi3ForCausalLM:
    """The model on the CPU in fp32, without gradients.

    Raises:
        BaseModelError: it is not a Phi-3, or its files are broken.
    """
    from safetensors import SafetensorError
    from transformers import Phi3ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # the runner's output is JSON lines and words, not bars
    architecture = read_config(base.folder).get("model_type")
    if architecture != "phi3":
        raise BaseModelError(
            f"{base.info.label} has the architecture {architecture!r}; the runner trains phi3",
            hint="Name a Phi-3, Phi-3.5 or Phi-4-mini checkpoint with --base.",
        )
    try:
        model, report = Phi3ForCausalLM.from_pretrained(
            base.folder,
            dtype="float32",
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
    except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise BaseModelError(f"{base.folder} cannot be loaded: {error}") from error
    other_shape = [name for name, *_ in report["mismatched_keys"]]
    missing = sorted({*report["missing_keys"], *other_shape})
    if missing:
        raise BaseModelError(
            f"{base.folder} lacks tensors or has them in another shape: {', '.join(missing[:5])}",
            hint="The checkpoint is not whole, or its config.json is another model's.",
        )
    model.requires_grad_(requires_grad=False)
    return model


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{folder}: {error}", hint="Is it a model folder?") from error
    return dict(config)


def _base(folder: Path, source: str, label: str, name: str, *, stand_in: bool = False) -> Base:
    return Base(folder, BaseInfo(source, label, _digest(folder), stand_in=stand_in), name)


def _digest(folder: Path) -> str:
    """sha256 over weights, config and tokenizer."""
    read_config(folder)
    files = sorted(file for pattern in (*_WEIGHTS, *_IDENTITY) for file in folder.glob(pattern))
    if not any(file.suffix == ".safetensors" for file in files):
        raise BaseModelError(
            f"{folder} holds no safetensors file",
            hint="Pickled checkpoints are never loaded; convert it to safetensors.",
        )
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
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return (folder / "model.safetensors").exists()
    shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all((folder / shard).exists() for shard in shards)
