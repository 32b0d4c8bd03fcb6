"""The job file that `maas init` writes."""

from __future__ import annotations

from pathlib import Path

from maas_client.errors import SpecError
from maas_client.spec.catalog import catalog, find_model
from maas_client.spec.catalog_file import near
from maas_client.spec.loading import parse_job

_TEMPLATE = """\
# maas run {file} --target local
$schema: https://azuremlschemas.azureedge.net/latest/FineTuningJob.schema.json
type: finetuning
display_name: {slug}
experiment_name: fine-tuning

task: {task}
model_provider: custom
model:
  path: {model}
  type: mlflow_model

training_data:
  path: {data}
  type: uri_file

# Every value is text. `maas plan` shows the rest, with defaults and where they come from.
hyperparameters:
  num_train_epochs: "1"
  learning_rate: "{rate}"
  lora_r: "8"
  lora_alpha: "128"

outputs:
  registered_model:
    name: {slug}
    type: mlflow_model
"""


def write_job(file: Path, *, model: str, data: str, task: str) -> Path:
    """Write a job file that loads.

    Raises:
        SpecError: the file is there already, or the model or task is unknown.
    """
    entry = find_model(model)
    if entry is None:
        hint = near(model, catalog()) or f"known: {', '.join(catalog())}"
        raise SpecError(f"there is no model {model}", hint=hint)
    if file.exists():
        raise SpecError(f"{file} is there already", hint="Name another file.")
    text = _TEMPLATE.format(
        file=file,
        slug=f"my-{entry.name.lower()}"[:40].replace(".", "-"),
        task=task,
        model=entry.asset_id(),
        data=data,
        rate=entry.defaults.get("learning_rate", "2e-05"),
    )
    parse_job(text, source=str(file))
    file.write_text(text, encoding="utf-8")
    return file
