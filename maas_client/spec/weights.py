"""What a folder of weights holds: an adapter, a model, or MLflow's folder around either; and its base.

adapter/              adapter_config.json, adapter_model.safetensors          needs its base
model/                config.json, *.safetensors, tokenizer                   stands alone
MLmodel, data/model   either of them; azureml's flavours have data/config and data/tokenizer beside it,
                      MLflow's own has model/ and components/tokenizer/
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from maas_client.errors import RunDirError
from maas_client.spec.catalog import find_model
from maas_client.spec.home import OWN_BASES, home
from maas_client.spec.job import ModelInput
from maas_client.spec.rundir import RunDir, read_json

_ADAPTER, _MODEL, _MLMODEL = "adapter_config.json", "config.json", "MLmodel"
_TENSORS = "model.safetensors"
_BESIDE = ("config", "tokenizer")
"""Folders of an MLflow model that hold what a model's folder has in itself."""
_OWN = {name: word for word, name in OWN_BASES.items()}
"""What adapters of our own small bases name, and how `--base` says it."""
TRAINED_ON, SIMULATED = "trainedOn", "simulated"
"""What the metadata of our MLmodel files say of how the weights were made."""
_SIMULATED = (SIMULATED, "mockSimulated")  # the second is how folders of an earlier twin say it


@dataclass(frozen=True, slots=True)
class Weights:
    """Something that can be loaded."""

    base: str
    """As for `--base`."""
    adapter: Path | None = None
    trained_on: str = ""
    """The base that the adapter names; empty where it names none, or where there is no adapter."""
    model: str = ""
    """The base model's name in the catalogue, where that is known."""

    @property
    def is_mismatched(self) -> bool:
        """Whether the adapter names another base than it is put on."""
        wanted = _OWN.get(self.trained_on, self.trained_on)
        return bool(wanted) and wanted not in (self.base, Path(self.base).name)


def find_weights(folder: Path, *, base: str | None = None) -> Weights:
    """The adapter or model in a folder, however it is wrapped.

    Args:
        folder: an adapter's, a model's, an MLflow model's, or one that such a folder was downloaded to.
        base: what to put an adapter on, as for `--base`; None takes what it names.

    Raises:
        RunDirError: there are no weights in it, they were simulated, or nothing says what their base is.
    """
    described = _described(folder)
    metadata = described.get("metadata")
    marks = metadata if isinstance(metadata, dict) else {}
    if any(str(marks.get(key)).lower() == "true" for key in _SIMULATED):
        raise RunDirError(f"{folder} was simulated: there are no weights in it")
    adapter, model = _nearest(folder, _ADAPTER), _model_in(folder)
    if model is not None and (base is None or adapter is None):
        if base is not None:
            raise RunDirError(
                f"{model} is a whole model, so --base {base} has nothing to do",
                hint="Leave --base out.",
            )
        return Weights(str(_whole(model)))
    if adapter is None:
        if (index := _nearest(folder, f"{_TENSORS}.index.json")) is not None:
            raise RunDirError(
                f"{index} names tensors, and none of their files is there",
                hint="Download the *.safetensors beside it.",
            )
        if (pickles := _nearest(folder, "pytorch_model*.bin")) is not None:
            raise RunDirError(
                f"{pickles} holds its weights as pickles, which are never opened",
                hint="Download the model's *.safetensors.",
            )
        raise RunDirError(
            f"{folder} holds no weights",
            hint=f"An adapter has {_ADAPTER}, a model {_MODEL} and *.safetensors.",
        )
    named = str(read_json(adapter / _ADAPTER).get("base_model_name_or_path") or "")
    asset = _asset(folder, described)
    entry = find_model(asset)
    chosen = base or _OWN.get(named) or _there(named) or (entry.hub_id if entry else None)
    if chosen is None:
        said = f"names {named!r}, which is not on this machine" if named else "does not say"
        raise RunDirError(
            f"what {adapter} was trained on, it {said}", hint="Name its base with --base."
        )
    return Weights(chosen, adapter, trained_on=named, model=asset)


def _there(named: str) -> str | None:
    """A base that can be loaded by the name that an adapter has for it."""
    is_hub_id = named.count("/") == 1 and not named.startswith(("/", ".", "~"))
    return named if is_hub_id or (named and Path(named).is_dir()) else None


def _described(folder: Path) -> Mapping[str, Any]:
    """What the MLmodel file says; nothing where there is none."""
    place = _nearest(folder, _MLMODEL)
    return {} if place is None else _yaml(place / _MLMODEL)


def _yaml(file: Path) -> Mapping[str, Any]:
    """The mapping in a YAML file; another thing is as good as none."""
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunDirError(f"{file}: {error}") from error
    return raw if isinstance(raw, dict) else {}


def _asset(folder: Path, described: Mapping[str, Any]) -> str:
    """The base model's name in the catalogue, by what the MLmodel or the run's job says."""
    flavors = described.get("flavors") or {}
    for flavor in flavors.values() if isinstance(flavors, dict) else ():
        if isinstance(flavor, dict) and isinstance(path := flavor.get("base_model"), str):
            return ModelInput(path=path).asset_name
    job_file = RunDir(folder).job_file
    if job_file.exists():
        model = _yaml(job_file).get("model")
        path = model.get("path") if isinstance(model, dict) else model
        return ModelInput(path=path).asset_name if isinstance(path, str) else ""
    return ""


def _nearest(folder: Path, name: str) -> Path | None:
    """The folder with that file that is least deep."""
    found = sorted(folder.rglob(name), key=lambda file: (len(file.parts), str(file)))
    return found[0].parent if found else None


def _model_in(folder: Path) -> Path | None:
    """The folder with a model's tensors that is least deep."""
    found = {
        file.parent
        for file in folder.rglob("*.safetensors")
        if not file.name.startswith("adapter_model")
    }
    return min(found, key=lambda place: (len(place.parts), str(place)), default=None)


def _whole(model: Path) -> Path:
    """The model's folder; where MLflow keeps its parts apart, one with links to all of them."""
    parts = [model, *_beside(model)]
    if len(parts) == 1:
        return model
    place = home() / "opened" / hashlib.sha256(str(model.resolve()).encode()).hexdigest()[:16]
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for part in reversed(parts):  # the model's own files win
        for file in part.iterdir():
            link = place / file.name
            link.unlink(missing_ok=True)
            link.symlink_to(file.resolve())
    return place


def _beside(model: Path) -> Iterator[Path]:
    if (model / _MODEL).exists() and (model / "tokenizer.json").exists():
        return
    for name in _BESIDE:
        for root in (model.parent, model.parent / "components"):
            if (root / name).is_dir():
                yield root / name
