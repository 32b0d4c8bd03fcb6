"""What a model folder holds, read from the heads of its safetensors files before any weight is.

A checkpoint that is not whole is told by tensor and file: missing, extra, of another shape or kind, cut off.
Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maas_client.errors import BaseModelError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = ("BF16", "F16", "F32", "F64")
_FOLLOWS_FROM_CONFIG = re.compile(r".*rotary_emb\.inv_freq")
_NAMED = 4
"""How many tensors an error names."""
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as a file announces it."""

    file: str
    kind: str
    """safetensors' name: BF16, F32, …"""
    shape: Shape


def weight_files(folder: Path) -> list[Path]:
    """The files of the weights, one or many.

    Raises:
        BaseModelError: there is none, or the index names one that is not there.
    """
    if (folder / WHOLE).exists():
        return [folder / WHOLE]
    if not (folder / INDEX).exists():
        pickled = sorted(file.name for kind in _PICKLED for file in folder.glob(kind))
        if pickled:
            raise BaseModelError(
                f"{folder} holds its weights pickled only: {', '.join(pickled[:_NAMED])}",
                hint="A pickle can run code when it is opened, so it never is. Convert it to safetensors "
                "(safetensors.torch.save_file) on a machine of no importance.",
            )
        raise BaseModelError(
            f"{folder} holds no safetensors file",
            hint=f"It needs {WHOLE}, or {INDEX} and its parts.",
        )
    files = dict.fromkeys(_weight_map(folder).values())
    for name in files:
        if "/" in name or "\\" in name or not (folder / name).exists():
            tensor = next(key for key, file in _weight_map(folder).items() if file == name)
            raise BaseModelError(
                f"{folder}: {INDEX} places {tensor} in {name}, which is not there",
                hint="Download the model again; a part of it is missing.",
            )
    return [folder / name for name in files]


def _weight_map(folder: Path) -> dict[str, str]:
    try:
        content = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return {str(key): str(file) for key, file in content.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseModelError(
            f"{folder / INDEX} is no index of weights: {error}", hint="Download it again."
        ) from error


def stored(folder: Path) -> dict[str, Stored]:
    """Every tensor of the checkpoint.

    Raises:
        BaseModelError: a file is cut off or no safetensors, or the index says otherwise.
    """
    found: dict[str, Stored] = {}
    for file in weight_files(folder):
        found |= _read_head(file)
    if not (folder / WHOLE).exists():
        for key, name in _weight_map(folder).items():
            if key not in found:
                raise BaseModelError(
                    f"{folder}: {INDEX} places {key} in {name}, which lacks it",
                    hint="Download the model again; the index and its parts do not belong together.",
                )
    return found


def _read_head(file: Path) -> dict[str, Stored]:
    """The format: eight bytes of length, so much JSON, then the numbers of one tensor after another."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            # A length that is none is cut to the file's: then the head is no JSON.
            head: dict[str, Any] = json.loads(stream.read(min(length, size)))
        head.pop("__metadata__", None)
        ends = {key: int(raw["data_offsets"][1]) for key, raw in head.items()}
        found = {
            key: Stored(file.name, str(raw["dtype"]), tuple(int(n) for n in raw["shape"]))
            for key, raw in head.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseModelError(
            f"{file} is no safetensors file: {error}", hint="Download it again."
        ) from error
    there = size - 8 - length
    cut = sorted((end, key) for key, end in ends.items() if end > there)
    if cut:
        raise BaseModelError(
            f"{file} is cut off: it has {size:,} bytes of {8 + length + cut[-1][0]:,}, and "
            f"{cut[0][1]} is not whole" + (f", nor are {len(cut) - 1} more" if cut[1:] else ""),
            hint="Download it again.",
        )
    return found


def compare(
    folder: Path,
    found: Mapping[str, Stored],
    expected: Mapping[str, Shape],
    *,
    optional: Sequence[str] = (),
) -> None:
    """Whether a checkpoint is the one that its config.json announces.

    Args:
        folder: for the message.
        found: what there is.
        expected: what the config's architecture needs, by the checkpoint's names.
        optional: may be absent, as a head that is tied to the embeddings.

    Raises:
        BaseModelError: it is not; with every kind of fault, tensors and files.
    """
    faults = []
    missing = [key for key in expected if key not in found and key not in optional]
    if missing:
        faults.append(f"missing: {_list(missing)}")
    other = [
        f"{key} in {found[key].file} is {_shape(found[key].shape)} and should be {_shape(shape)}"
        for key, shape in expected.items()
        if key in found and found[key].shape != shape
    ]
    if other:
        faults.append(f"of another shape: {_list(other)}")
    kinds = [
        f"{key} in {at.file} is {at.kind}" for key, at in found.items() if at.kind not in _FLOATS
    ]
    if kinds:
        faults.append(f"no plain numbers: {_list(kinds)}")
    extra = [
        f"{key} in {found[key].file}"
        for key in found
        if key not in expected and not _FOLLOWS_FROM_CONFIG.fullmatch(key)
    ]
    if extra:
        faults.append(f"not of this architecture: {_list(extra)}")
    if faults:
        raise BaseModelError(
            f"{folder}: the weights are not those of its config.json; {'; '.join(faults)}",
            hint="The checkpoint is not whole, is quantized, or its config.json is another model's.",
        )


def _list(words: Sequence[str]) -> str:
    rest = len(words) - _NAMED
    return ", ".join(words[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _shape(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "a number"
