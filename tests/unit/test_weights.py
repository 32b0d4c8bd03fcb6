"""A folder of weights is known for what it is, however it was downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from maas_client.errors import RunDirError
from maas_client.spec.home import OWN_BASES
from maas_client.spec.weights import find_weights

ASSET = "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/15"
HUB = "microsoft/Phi-3-mini-4k-instruct"


def adapter(folder: Path, named: str | None) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": named}))
    (folder / "adapter_model.safetensors").touch()
    return folder


def model(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(name)
    return folder


def describe(folder: Path, **said: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "MLmodel").write_text(yaml.safe_dump(said))
    return folder


@pytest.mark.parametrize(
    ("named", "base"),
    [("tiny-random-phi3", "tiny"), ("stand-in/SmolLM2-135M-Instruct", "stand-in"), (HUB, HUB)],
)
def test_an_adapter_goes_on_the_base_that_it_names(tmp_path: Path, named: str, base: str) -> None:
    found = find_weights(adapter(tmp_path / "a", named))
    assert (found.base, found.adapter, found.is_mismatched) == (base, tmp_path / "a", False)
    other = find_weights(tmp_path / "a", base="me/other")
    assert (other.base, other.trained_on, other.is_mismatched) == ("me/other", named, True)


@pytest.mark.parametrize(("named", "why"), [(None, "does not say"), ("my-folder", "'my-folder'")])
def test_an_adapter_whose_base_nobody_knows_asks_for_it(
    tmp_path: Path, named: str | None, why: str
) -> None:
    with pytest.raises(RunDirError, match=why) as asked:
        find_weights(adapter(tmp_path / "a", named))
    assert "--base" in asked.value.hint
    assert find_weights(tmp_path / "a", base="tiny").base == "tiny"


def test_an_mlflow_model_around_an_adapter_names_its_base(tmp_path: Path) -> None:
    folder = describe(tmp_path / "out" / "registered_model", flavors={"f": {"base_model": ASSET}})
    inside = adapter(folder / "data" / "model", None)
    found = find_weights(tmp_path / "out")
    assert (found.base, found.adapter, found.model) == (HUB, inside, "Phi-3-mini-4k-instruct")


@pytest.mark.parametrize(
    ("weights", "beside"),
    [("data/model", "data/tokenizer"), ("model", "components/tokenizer")],
    ids=["azureml", "mlflow"],
)
def test_an_mlflow_model_in_parts_is_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str, beside: str
) -> None:
    monkeypatch.setenv("MAAS_HOME", str(tmp_path / "home"))
    folder = describe(tmp_path / "m", flavors={})
    model(folder / weights, "config.json", "model.safetensors")
    model(folder / beside, "tokenizer.json", "tokenizer_config.json")
    for _ in range(2):
        found = find_weights(folder)
        names = sorted(file.name for file in Path(found.base).iterdir())
        assert names == [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
        assert (Path(found.base) / "tokenizer.json").read_text() == "tokenizer.json"


def test_a_whole_model_stands_alone(tmp_path: Path) -> None:
    whole = model(tmp_path / "merged", "config.json", "model.safetensors", "tokenizer.json")
    assert find_weights(tmp_path).base == str(whole)
    with pytest.raises(RunDirError, match="whole model"):
        find_weights(tmp_path, base="tiny")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("model.safetensors.index.json", "{}", "none of their files is there"),
        ("pytorch_model-00001-of-00002.bin", "x", "pickles, which are never opened"),
        ("MLmodel", "metadata: null", "holds no weights"),
        ("MLmodel", "metadata: [1", "MLmodel"),
    ],
)
def test_what_is_there_instead_of_weights_is_named(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(RunDirError, match=said):
        find_weights(tmp_path)


@pytest.mark.parametrize(("word", "name"), OWN_BASES.items())
def test_an_adapter_of_one_of_our_own_bases_finds_it(tmp_path: Path, word: str, name: str) -> None:
    adapter(tmp_path / "adapter", name)
    assert find_weights(tmp_path).base == word


@pytest.mark.parametrize("text", ["model: name", "model: {path: 3}", "5"])
def test_a_job_file_that_names_no_model_leaves_an_adapter_usable(tmp_path: Path, text: str) -> None:
    adapter(tmp_path / "adapter", "tiny")
    (tmp_path / "job.yaml").write_text(text)
    assert find_weights(tmp_path, base="tiny").base == "tiny"


def test_a_broken_job_file_beside_an_adapter_is_named(tmp_path: Path) -> None:
    adapter(tmp_path / "adapter", "tiny")
    (tmp_path / "job.yaml").write_text("model: [")
    with pytest.raises(RunDirError, match=r"job\.yaml"):
        find_weights(tmp_path, base="tiny")


def test_what_holds_no_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="holds no weights"):
        find_weights(tmp_path)
    describe(tmp_path, metadata={"mockSimulated": "true"})
    with pytest.raises(RunDirError, match="simulated"):
        find_weights(tmp_path)
