"""manifest.json: a digest of every input and output, and what made them."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maas_client.plan import BaseInfo, Plan
from maas_client.spec.rundir import RunDir, file_digest, write_json

_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "tokenizers",
    "safetensors",
    "bitsandbytes",
    "maas-finetune",
)


def write(
    run: RunDir,
    plan: Plan,
    base: BaseInfo | None,
    *,
    took: Mapping[str, Any],
    simulated: bool = False,
) -> None:
    """Write the manifest of a run that has ended well; `took` says its steps and seconds."""
    inputs: dict[str, Any] = {"plan": {"sha256": file_digest(run.plan_file)}}
    if run.job_file.exists():
        inputs["job"] = {"sha256": file_digest(run.job_file)}
    for name, data in (("training_data", plan.training), ("validation_data", plan.validation)):
        if data and data.report:
            inputs[name] = {"path": data.path, "sha256": data.report.sha256}
    digests = {str(file.relative_to(run.path)): file_digest(file) for file in run.outputs()}
    write_json(
        run.manifest_file,
        {
            "simulated": simulated,
            "base": base.to_json() if base else None,
            "inputs": inputs,
            "outputs": digests,
            **took,
            "seed": plan.seed,
            "threads": plan.threads,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cpu": _processor(),
            "packages": {} if simulated else _versions(),
        },
    )


def _processor() -> str:
    """The processor's name; which kernels are used, and so the last bits, depends on it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
