"""What Kaito's webhook refuses and the CRD's schema lets through, ported as data and small checks. Pure.

Source: the validation of v1beta1 Workspaces and of tuning ConfigMaps in Kaito's repository (workspace and
tuning config validation), read on 2026-11-24. `maas plan` and `maas submit` ask these before the cluster.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import yaml

from maas_client.spec.sizes import SIZES
from maas_client.targets.kaito.config import FILE
from maas_client.targets.kaito.presets import PRESETS

Object = Mapping[str, Any]

_SECTIONS = (
    "ModelConfig",
    "QuantizationConfig",
    "LoraConfig",
    "TrainingArguments",
    "DatasetConfig",
    "DataCollator",
)
_METADATA_HOSTS = ("metadata.google.internal", "metadata.google", "instance-data.ec2.internal")
_NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
            *("169.254.0.0/16", "224.0.0.0/24"),
            *("::1/128", "fc00::/7", "fe80::/10", "ff02::/16"),
        ),
    )
)
"""Loopback, private and link-local, in Go's sense of these words."""
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
_IMAGE = re.compile(
    r"(?:(?:localhost|[\w-]+(?:\.[\w-]+)+|[\w-]+(?=:\d))(?::\d+)?/)?"  # registry, and its port
    r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*)*"
    r"(?::[\w][\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?\Z",
    re.ASCII,
)


def label_fault(name: str) -> str | None:
    """What is wrong with a name of a Workspace."""
    if _LABEL.match(name):
        return None
    return (
        f"{name!r} cannot be the name of a Workspace: lower-case letters, digits and '-', at most 63, "
        "a letter or digit at both ends"
    )


def url_fault(url: str) -> str | None:
    """What is wrong with an address that the cluster is to read rows from."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").partition("%")[0]
    except ValueError:
        return "it is not a URL"
    if parts.scheme.lower() not in ("http", "https") or not host:
        return "it must be an http or https address"
    if host == "localhost" or host.endswith(".localhost") or host in _METADATA_HOSTS:
        return "a local or metadata address is refused"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if any(address in net for net in _NOT_PUBLIC if net.version == address.version):
        return "a loopback, private or link-local address is refused"
    return None


def image_fault(image: str) -> str | None:
    """What is wrong with the reference of an image."""
    return None if _IMAGE.match(image) else f"{image!r} is not the reference of an image"


def instance_fault(name: str) -> str | None:
    """What is wrong with the size of a node."""
    size = SIZES.get(name.lower())
    if size is not None and not size.gpus:
        return f"{name} has no GPU"
    if size is None and re.match(r"standard_(?!n)", name.lower()):
        return f"{name} has no GPU; Azure's sizes that have one begin with Standard_N"
    return None


def faults(workspace: Object, config_map: Object | None) -> Iterator[str]:
    """Everything that Kaito would refuse of a tuning Workspace, each with its key.

    Args:
        workspace: the Workspace.
        config_map: the one that `tuning.config` names.
    """
    if fault := label_fault(str(workspace.get("metadata", {}).get("name", ""))):
        yield f"metadata.name: {fault}"
    tuning = workspace.get("tuning")
    if tuning is None or workspace.get("inference") is not None:
        yield "tuning: it is needed, and inference must not be beside it"
        return
    yield from _resource_faults(workspace.get("resource", {}))
    method = str(tuning.get("method", "")).lower()
    if method not in ("lora", "qlora"):
        yield f"tuning.method is {tuning.get('method')!r}; allowed: lora, qlora"
    preset = (tuning.get("preset") or {}).get("name", "")
    if preset not in PRESETS:
        yield f"tuning.preset.name is {preset!r}; allowed: {', '.join(PRESETS)}"
    yield from _input_faults(tuning.get("input") or {})
    yield from _output_faults(tuning.get("output") or {})
    yield from _config_faults(tuning, config_map, method)


def _resource_faults(resource: Object) -> Iterator[str]:
    if (resource.get("count") or 1) > 1:
        yield f"resource.count is {resource['count']}; tuning runs on one node"
    if resource.get("partition") is not None:
        yield "resource.partition: a part of a GPU cannot tune"
    if (name := resource.get("instanceType")) and (fault := instance_fault(name)):
        yield f"resource.instanceType: {fault}"


def _input_faults(source: Object) -> Iterator[str]:
    for url in source.get("urls") or ():
        if fault := url_fault(url):
            yield f"tuning.input.urls: {url}: {fault}"
    if (image := source.get("image")) and (fault := image_fault(image)):
        yield f"tuning.input.image: {fault}"
    given = [key for key in ("urls", "image", "volumeSource") if source.get(key)]
    if len(given) != 1:
        yield f"tuning.input has {' and '.join(given) or 'nothing'}; exactly one of urls, image, volumeSource"


def _output_faults(output: Object) -> Iterator[str]:
    if image := output.get("image"):
        if fault := image_fault(image):
            yield f"tuning.output.image: {fault}"
        if not output.get("imagePushSecret"):
            yield "tuning.output.imagePushSecret is missing: an image is pushed with a secret"
    given = [key for key in ("image", "volumeSource") if output.get(key)]
    if len(given) != 1:
        yield f"tuning.output has {' and '.join(given) or 'nothing'}; exactly one of image, volumeSource"


def _config_faults(tuning: Object, config_map: Object | None, method: str) -> Iterator[str]:
    if not tuning.get("config"):
        yield "tuning.config is missing: Kaito's own default trains half of a Phi-3"
        return
    name = (config_map or {}).get("metadata", {}).get("name")
    if config_map is None or name != tuning["config"]:
        yield f"tuning.config is {tuning['config']!r}; there is no such ConfigMap"
        return
    try:
        config = yaml.safe_load(config_map.get("data", {})[FILE])["training_config"]
        unknown = sorted(set(config) - set(_SECTIONS))
    except (KeyError, TypeError, yaml.YAMLError):
        yield f"the ConfigMap has no {FILE} with a training_config"
        return
    if unknown:
        yield f"{FILE}: {unknown[0]} is not a section; allowed: {', '.join(_SECTIONS)}"
    yield from _quantization_faults(config.get("QuantizationConfig"), method)
    yield from _directory_faults(config.get("TrainingArguments") or {})


def _quantization_faults(given: Object | None, method: str) -> Iterator[str]:
    bits = {key: (given or {}).get(key) for key in ("load_in_4bit", "load_in_8bit")}
    for key, value in bits.items():
        if value is not None and not isinstance(value, bool):
            yield f"QuantizationConfig.{key} is {value!r}; true or false"
            return
    count = sum(value is True for value in bits.values())
    if count == 2:
        yield "QuantizationConfig: load_in_4bit and load_in_8bit cannot both be true"
    elif method == "lora" and count:
        yield "QuantizationConfig: method lora takes neither load_in_4bit nor load_in_8bit"
    elif method == "qlora" and not count:
        yield "QuantizationConfig: method qlora needs load_in_4bit or load_in_8bit"


def _directory_faults(arguments: Object) -> Iterator[str]:
    given = arguments.get("output_dir")
    if given is None:
        return
    if not isinstance(given, str):
        yield f"TrainingArguments.output_dir is {given!r}; it must be text"
        return
    # Like the webhook: joined below /mnt. `/mnt/x` is fine for it, as /mnt/mnt/x would be.
    path = posixpath.normpath(f"/mnt/{given}")
    if not path.startswith("/mnt/"):
        yield f"TrainingArguments.output_dir is {given!r}; it must be a directory below /mnt"
