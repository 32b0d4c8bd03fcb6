"""The same job file through the registry's pipeline component, as the service's own notebook does it.

    eval "$(maas mock env)"; python pipeline.py --target mock      or: --target azure

`maas submit job.yaml` is one job; this is a pipeline of five steps around it, which evaluates, too. The
plan is ours: rows, values and machines are checked before azure-ai-ml is asked, and every value that the
component has an input for is given to it.
"""

# mypy: ignore-errors
from __future__ import annotations

import argparse
import os
from pathlib import Path

from azure.ai.ml import Input, MLClient
from azure.ai.ml.dsl import pipeline
from azure.ai.ml.entities import Model
from azure.identity import DefaultAzureCredential

import maas_client as maas

HERE = Path(__file__).parent
COMPONENT = "chat_completion_pipeline"


def main(target: str) -> None:
    place = maas.open_target(target)
    plan = maas.plan_job(HERE / "job.yaml", place)
    place.close()
    for warning in plan.warnings:
        print("warning:", warning)

    credential = DefaultAzureCredential()
    where = ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZUREML_WORKSPACE_NAME")
    workspace = MLClient(credential, *(os.environ[key] for key in where))
    registry = MLClient(credential, registry_name="azureml")
    component = registry.components.get(name=COMPONENT, label="latest")
    inputs = component.inputs
    values = {
        key: said(value, inputs[key].type) for key, value in plan.values.items() if key in inputs
    }
    size = plan.job.resources.instance_types[0]

    @pipeline(name=plan.job.name)
    def around() -> dict:
        tuned = component(
            mlflow_model_path=plan.job.model.path,
            instance_type_finetune=size,
            train_file_path=Input(type="uri_file", path=plan.training.path),
            validation_file_path=Input(type="uri_file", path=plan.validation.path),
            **values,
        )
        return {"trained_model": tuned.outputs.mlflow_model_folder}

    job = workspace.jobs.create_or_update(around(), experiment_name="support-agent")
    print("submitted as", job.name)
    workspace.jobs.stream(job.name)
    path = f"azureml://jobs/{job.name}/outputs/trained_model"
    model = Model(path=path, type="mlflow_model", name=plan.job.registered_model)
    made = workspace.models.create_or_update(model)
    print(f"registered as {made.name}:{made.version}")


def said(value: object, kind: str) -> object:
    """A value as the component's input of that kind has it; its booleans are text."""
    if kind == "integer":
        if value != int(value):
            raise SystemExit(f"the component takes whole numbers only, and {value} is none")
        return int(value)
    return float(value) if kind == "number" else str(value).lower()


if __name__ == "__main__":
    words = argparse.ArgumentParser()
    words.add_argument("--target", default="mock")
    main(words.parse_args().target)
