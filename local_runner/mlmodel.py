"""A run's model as an MLflow model folder: `mlflow_model`, the type that Azure's jobs output.

    <folder>/
      MLmodel            what it is, and who loads it
      requirements.txt   what that needs
      data/model/        the adapter in PEFT's layout
      data/merged/       the whole model, where the run merged it
      data/base.json     which weights the adapter belongs to

Written without MLflow, as the service writes it. `mlflow.pyfunc.load_model` loads it through
`local_runner.pyfunc`.
"""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from maas_client.plan import Plan
from maas_client.spec.rundir import RunDir
from maas_client.spec.weights import SIMULATED, TRAINED_ON

FILE, DATA = "MLmodel", "data"
ADAPTER, MERGED, BASE = f"{DATA}/model", f"{DATA}/merged", f"{DATA}/base.json"
LOADER = "local_runner.pyfunc"
REQUIREMENTS = "requirements.txt"
_PARAMETERS = [
    {"name": name, "type": kind, "default": default, "shape": None}
    for name, kind, default in (
        ("max_tokens", "long", 256),
        ("temperature", "double", 0.0),
        ("top_p", "double", 1.0),
        ("seed", "long", None),
        ("stop", "string", None),
    )
]
"""How an answer may be asked for, with `generate.Ask`'s own defaults, in MLflow's form."""


def write(run: RunDir, plan: Plan, folder: Path, *, run_id: str = "") -> None:
    """Write the folder of a run that has succeeded.

    Args:
        run: where the adapter lies.
        plan: what it was trained by.
        folder: made here.
        run_id: what tracked it.
    """
    folder.mkdir(parents=True)
    for source, place in ((run.adapter, ADAPTER), (run.merged, MERGED)):
        if source.is_dir():
            shutil.copytree(source, folder / place)
    for place, text in texts(run, plan, run_id=run_id).items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(text, encoding="utf-8")


def texts(run: RunDir, plan: Plan, *, run_id: str = "", created: str = "") -> dict[str, str]:
    """The small files beside the weights, by their place in the folder."""
    status = run.read_status()
    base = plan.base.to_json() if plan.base else {}
    return {
        FILE: yaml.safe_dump(
            {
                "artifact_path": "registered_model",
                "flavors": {
                    "python_function": {
                        "loader_module": LOADER,
                        "data": DATA,
                        "env": {"virtualenv": REQUIREMENTS},
                        "python_version": platform.python_version(),
                    },
                    "maas_finetune": {
                        "model_data": ADAPTER,
                        "format": "peft",
                        "base_model": plan.job.model.path,
                        "task": str(plan.job.task),
                    },
                },
                # MLflow hands on only those parameters that are named here.
                "signature": {"inputs": None, "outputs": None, "params": json.dumps(_PARAMETERS)},
                "run_id": run_id,
                "utc_time_created": created or dt.datetime.now(tz=dt.UTC).isoformat(),
                # Whoever registers this folder again shall know what it is.
                "metadata": {
                    TRAINED_ON: status.base if status else "",
                    SIMULATED: str(bool(status and status.simulated)).lower(),
                },
            },
            sort_keys=False,
        ),
        REQUIREMENTS: f"maas-finetune[train]=={importlib.metadata.version('maas-finetune')}\n",
        BASE: json.dumps({**base, "model": plan.job.model.asset_name}, indent=2) + "\n",
    }


def base_of(data: Path) -> Mapping[str, Any]:
    """What `data/base.json` says, given the folder `data`."""
    file = data / Path(BASE).name
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}
