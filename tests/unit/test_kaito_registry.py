"""An adapter out of a registry that is a stand-in, through its HTTP API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from maas_client.errors import AuthError, NotFoundError, TargetError
from maas_client.targets.kaito import registry
from tests.fake_registry import LOGIN, running_registry

ADAPTER = {
    "data/adapter_config.json": b'{"peft_type": "LORA"}',
    "data/adapter_model.safetensors": b"weights",
}


@pytest.mark.parametrize("wants", ["Bearer", "Basic", ""])
def test_an_adapter_comes_out_of_a_registry(tmp_path: Path, wants: str) -> None:
    with running_registry() as images:
        images.wants = wants
        older = {"data/adapter_model.safetensors": b"older", **dict.fromkeys(ADAPTER, b"old")}
        image = images.push("team/a", "1", older, ADAPTER)
        user, _, password = LOGIN.partition(":")
        registry.fetch_adapter(image, tmp_path, ask_login=lambda _: (user, password))
        assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == b"weights"
        assert not [
            path for path, given in images.asked if "elsewhere" in path and not given and wants
        ]


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([{"data/other": b"x"}], "holds no adapter"),
        ([{"data/adapter_config.json": b"{}"}], "holds no adapter"),
    ],
)
def test_an_image_without_an_adapter_is_an_error(
    tmp_path: Path, layers: list[dict[str, bytes]], words: str
) -> None:
    with running_registry() as images:
        images.wants = ""
        image = images.push("team/a", "1", *layers)
        with pytest.raises(TargetError, match=words):
            registry.fetch_adapter(image, tmp_path, ask_login=lambda _: None)


def test_a_registry_is_not_believed_where_it_lies(tmp_path: Path) -> None:
    with running_registry() as images:
        images.wants = ""
        image = images.push("team/a", "1", ADAPTER)
        digest = next(iter(images.blobs))
        images.blobs[digest] += b"more"
        with pytest.raises(TargetError, match="is not what sha256:"):
            registry.fetch_adapter(image, tmp_path, ask_login=lambda _: None)
        images.wants = "Bearer"
        with pytest.raises(AuthError) as caught:
            registry.fetch_adapter(image, tmp_path, ask_login=lambda _: ("robot", "wrong"))
        assert "wrong" not in str(caught.value)
        images.wants = ""
        with pytest.raises(NotFoundError) as absent:
            registry.fetch_adapter(f"{image}0", tmp_path, ask_login=lambda _: None)
        assert "has no team/a:10" in absent.value.hint


@pytest.mark.parametrize(
    ("raw", "login"),
    [
        ({"auths": {"a.io": {"username": "me", "password": "it"}}}, ("me", "it")),
        ({"auths": {"https://a.io/v1/": {"auth": "bWU6aXQ="}}}, ("me", "it")),
        ({"auths": {"b.io": {"auth": "bWU6aXQ="}}}, None),
        ({}, None),
    ],
)
def test_dockers_config_has_the_login(raw: Any, login: Any) -> None:
    assert registry.login(json.dumps(raw), "a.io") == login
    with pytest.raises(TargetError, match="is no docker config"):
        registry.login("[]", "a.io")


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("a.io/b/c:1", ("a.io", "b/c", "1", "https://a.io")),
        ("localhost:5000/c", ("localhost:5000", "c", "latest", "http://localhost:5000")),
        ("c", ("docker.io", "library/c", "latest", "https://registry-1.docker.io")),
        ("a.io/b@sha256:00", ("a.io", "b", "sha256:00", "https://a.io")),
    ],
)
def test_an_image_is_read_as_docker_reads_it(image: str, parts: tuple[str, ...]) -> None:
    found = registry.Reference.read(image)
    assert (found.registry, found.repository, found.tag, found.root) == parts
