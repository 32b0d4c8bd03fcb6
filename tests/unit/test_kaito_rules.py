"""What Kaito refuses: each rule with a row that breaks it, and no job that we make breaks one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maas_client.errors import PlanError
from maas_client.plan import DataPlan, Plan, make_plan
from maas_client.settings import KaitoSettings
from maas_client.spec.catalog import catalog, find_model
from maas_client.spec.dataset import check
from maas_client.spec.hyperparameters import KNOBS, read
from maas_client.spec.job import FineTuningJob
from maas_client.targets.kaito import rules, sayable, schema, workspace
from maas_client.targets.kaito.config import FILE, KEYS, method
from maas_client.targets.kaito.presets import PRESETS, preset
from tests.conftest import ROW

IMAGE = KaitoSettings("kaito", output_image="registry.example.com/a/b", output_secret="push")
CLAIM = KaitoSettings("kaito", output_claim="adapters", instance_type="", data_claim="rows")
URL = "https://files.example.com/rows/train.jsonl"


def job(path: str = URL, **fields: Any) -> FineTuningJob:
    base = {
        "name": "support-agent",
        "task": "chat_completion",
        "model_provider": "custom",
        "model": "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/15",
        "training_data": path,
    }
    return FineTuningJob.model_validate(base | fields)


def planned(given: FineTuningJob, to: KaitoSettings = IMAGE, file: Path | None = None) -> Plan:
    report = check(file, given.task) if file else None
    data = DataPlan(str(file or given.training_data.path), report)
    return make_plan(given, sayable.limits(given, to), training=data)


def made(
    given: FineTuningJob, to: KaitoSettings = IMAGE, file: Path | None = None
) -> workspace.Manifests:
    return workspace.manifests(planned(given, to, file), to)


def tuning(**changes: Any) -> dict[str, Any]:
    """A good Workspace with other words in its tuning; None takes one out."""
    there = copy.deepcopy(made(job()).workspace)
    for key, value in changes.items():
        there["tuning"][key] = value
    there["tuning"] = {key: value for key, value in there["tuning"].items() if value is not None}
    return there


def config(**sections: Any) -> dict[str, Any]:
    text = yaml.safe_dump({"training_config": sections})
    return {"metadata": {"name": "support-agent-config"}, "data": {FILE: text}}


GOOD = made(job()).config_maps[0]
OUTPUT = {"image": "registry.example.com/a/b:1", "imagePushSecret": "push"}
CLAIMED = {"persistentVolumeClaim": {"claimName": "c"}}

REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any] | None, str]] = {
    "method": (tuning(method="dora"), GOOD, "tuning.method is 'dora'"),
    "no method": (tuning(method=None), GOOD, "tuning.method is None"),
    "Phi-3-small": (tuning(preset={"name": "phi-3-small-8k-instruct"}), GOOD, "tuning.preset.name"),
    "no input": (tuning(input={"name": "rows"}), GOOD, "tuning.input has nothing"),
    "two inputs": (
        tuning(input={"urls": [URL], "image": "a/b:1"}),
        GOOD,
        "tuning.input has urls and image",
    ),
    "bad data image": (tuning(input={"image": "UPPER/Case"}), GOOD, "tuning.input.image"),
    "no output": (tuning(output={}), GOOD, "tuning.output has nothing"),
    "two outputs": (tuning(output={**OUTPUT, "volumeSource": CLAIMED}), GOOD, "tuning.output has"),
    "no secret": (tuning(output={"image": "a/b:1"}), GOOD, "imagePushSecret is missing"),
    "bad image": (tuning(output={**OUTPUT, "image": "a b"}), GOOD, "tuning.output.image"),
    "two nodes": (made(job()).workspace | {"resource": {"count": 2}}, GOOD, "resource.count is 2"),
    "part of a GPU": (
        made(job()).workspace | {"resource": {"partition": {"mode": "mig"}}},
        GOOD,
        "resource.partition",
    ),
    "no GPU": (
        made(job()).workspace | {"resource": {"instanceType": "Standard_D4as_v4"}},
        GOOD,
        "has no GPU",
    ),
    "inference beside it": (made(job()).workspace | {"inference": {}}, GOOD, "inference must not"),
    "name": (made(job()).workspace | {"metadata": {"name": "Up_per"}}, GOOD, "metadata.name"),
    "long name": (made(job()).workspace | {"metadata": {"name": "a" * 64}}, GOOD, "at most 63"),
    "no config": (tuning(config=None), GOOD, "tuning.config is missing"),
    "absent config": (tuning(), None, "there is no such ConfigMap"),
    "empty config": (tuning(), config() | {"data": {}}, f"has no {FILE}"),
    "section": (tuning(), config(Trainer={}), "Trainer is not a section"),
    "lora in 4 bits": (
        tuning(),
        config(QuantizationConfig={"load_in_4bit": True}),
        "method lora takes neither",
    ),
    "lora in 8 bits": (
        tuning(),
        config(QuantizationConfig={"load_in_8bit": True}),
        "method lora takes neither",
    ),
    "qlora without bits": (tuning(method="qlora"), GOOD, "method qlora needs"),
    "qlora without a section": (tuning(method="QLoRA"), config(), "method qlora needs"),
    "both bits": (
        tuning(method="qlora"),
        config(QuantizationConfig={"load_in_4bit": True, "load_in_8bit": True}),
        "cannot both be true",
    ),
    "bits as text": (
        tuning(method="qlora"),
        config(QuantizationConfig={"load_in_4bit": "yes"}),
        "true or false",
    ),
    "output elsewhere": (
        tuning(),
        config(TrainingArguments={"output_dir": "../etc"}),
        "below /mnt",
    ),
    "output is /mnt": (tuning(), config(TrainingArguments={"output_dir": "."}), "below /mnt"),
    "output is a number": (tuning(), config(TrainingArguments={"output_dir": 1}), "must be text"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_each_rule_of_the_webhook_refuses_its_row(name: str) -> None:
    there, config_map, words = REFUSED[name]
    found = list(rules.faults(there, config_map))
    assert [fault for fault in found if words in fault], found


@pytest.mark.parametrize("name", ["lora", "LoRA", "qlora"])
def test_what_kaito_takes_is_taken(name: str) -> None:
    bits = {"load_in_4bit": name == "qlora"}
    given = config(QuantizationConfig=bits, TrainingArguments={"output_dir": "/mnt/elsewhere"})
    assert not list(rules.faults(tuning(method=name), given))


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/a.jsonl",
        "http://rows.localhost/a.jsonl",
        "http://127.0.0.1/a.jsonl",
        "http://127.9.9.9:8080/a.jsonl",
        "http://[::1]/a.jsonl",
        "http://[::ffff:127.0.0.1]/a.jsonl",
        "https://10.1.2.3/a.jsonl",
        "https://172.31.0.1/a.jsonl",
        "https://192.168.0.1/a.jsonl",
        "https://[fd00::1]/a.jsonl",
        "http://169.254.169.254/latest",
        "http://[fe80::1%25eth0]/a.jsonl",
        "http://metadata.google.internal/a.jsonl",
        "ftp://files.example.com/a.jsonl",
        "https:///a.jsonl",
        "train.jsonl",
    ],
)
def test_an_address_inside_the_cluster_is_refused(url: str) -> None:
    assert rules.url_fault(url)


@pytest.mark.parametrize("url", [URL, "http://172.32.0.1/a.jsonl", "https://8.8.8.8:8443/a.jsonl"])
def test_an_address_that_the_world_reaches_is_taken(url: str) -> None:
    assert rules.url_fault(url) is None


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://files.example.com/a b.jsonl", "has a space"),
        ("https://files.example.com/a.jsonl?sig=a/b", "write %2F"),
        ("https://files.example.com/rows/", "does not end in a file name"),
        ("azureml:rows:1", "must be an http or https address"),
    ],
)
def test_an_address_that_kaitos_downloader_would_garble_is_refused(url: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        planned(job(url))


@pytest.mark.parametrize(
    ("image", "good"),
    [
        ("registry.example.com/team/adapters:support-agent", True),
        ("localhost:5000/a:1", True),
        ("ubuntu", True),
        ("a/b@sha256:" + "0" * 64, True),
        ("A/b", False),
        ("a/b:", False),
        ("https://registry.example.com/a", False),
    ],
)
def test_references_of_images(image: str, *, good: bool) -> None:
    assert (rules.image_fault(image) is None) is good


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "Support_Agent"}, "cannot be the name of a Workspace"),
        ({"name": "a" * 60}, "60 characters; at most 54"),
        ({"model": "Phi-3-small-8k-instruct"}, "no preset for tuning"),
        ({"model": "Llama"}, "no preset for tuning"),
        ({"validation_data": URL}, "validation_data cannot be said"),
        ({"compute": "gpu"}, "compute cannot be said"),
        ({"resources": {"instance_types": ["a", "b"]}}, "name one"),
        ({"resources": {"instance_types": ["Standard_E4s_v3"]}}, "has no GPU"),
        ({"task": "text_completion"}, "task text_completion is not done"),
        ({"hyperparameters": {"use_dora": "true"}}, "lora, and qlora with load_in_4bit"),
        ({"hyperparameters": {"peft_method": "ia3"}}, "it does lora"),
        ({"hyperparameters": {"apply_lora": "false"}}, "it does true"),
        ({"hyperparameters": {"precision": "16"}}, r"it does bf16 \| 32"),
        ({"hyperparameters": {"evaluation_strategy": "steps"}}, "no validation rows"),
        ({"hyperparameters": {"max_seq_length": "2048"}}, "cut the rows themselves"),
    ],
)
def test_what_cannot_be_said_is_refused_with_the_nearest(
    fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(PlanError, match=words):
        planned(job(**fields))


@pytest.mark.parametrize(
    ("to", "words"),
    [
        (KaitoSettings("kaito"), "exactly one of output_image and output_claim"),
        (KaitoSettings("kaito", output_image="a.io/b"), "needs output_secret"),
        (KaitoSettings("kaito", output_image="a.io/b:1", output_secret="s"), "names a tag"),
        (KaitoSettings("kaito", output_claim="c", node_selector="gpu"), "write key=value"),
        (KaitoSettings("kaito", output_claim="c", data_claim="d", data_image="e"), "one of them"),
    ],
)
def test_a_target_that_is_half_configured_is_refused(to: KaitoSettings, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        planned(job(), to)


def test_rows_that_are_small_travel_in_a_config_map_and_others_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text(f"{ROW}\n")
    there = made(job(str(file)), file=file)
    assert there.workspace["tuning"]["input"]["volumeSource"] == {
        "configMap": {"name": "support-agent-rows"}
    }
    assert there.config_maps[1]["data"] == {"train.jsonl": f"{ROW}\n"}
    file.write_text(f"{ROW}\n" * 10_000)
    with pytest.raises(PlanError, match="Name an https address"):
        planned(job(str(file)), file=file)
    there = made(job(str(file)), CLAIM, file)
    assert len(there.config_maps) == 1
    assert there.workspace["tuning"]["input"]["volumeSource"] == {
        "persistentVolumeClaim": {"claimName": "rows"}
    }
    assert "instanceType" not in there.workspace["resource"]


@pytest.mark.parametrize("name", [entry for entry in catalog() if entry.lower() in PRESETS])
def test_the_fused_modules_are_named_for_every_model(name: str) -> None:
    config = sections(made(job(model=name)))
    entry = find_model(name)
    assert entry is not None
    assert config["LoraConfig"]["target_modules"] == list(entry.lora_targets)
    assert not {"q_proj", "k_proj", "gate_proj"} & set(config["LoraConfig"]["target_modules"])


def test_every_preset_is_of_a_model_and_phi_3_small_has_none() -> None:
    with_preset = {preset(entry) for entry in catalog().values()} - {None}
    assert {"phi-3-mini-4k-instruct", "phi-3-medium-128k-instruct"} <= with_preset <= set(PRESETS)
    assert not [name for name in with_preset if "small" in str(name)]


def test_numbers_stay_numbers_for_a_reader_of_yaml_1_1() -> None:
    text = made(job(hyperparameters={"learning_rate": "5e-6"})).config_maps[0]["data"][FILE]
    arguments = yaml.safe_load(text)["training_config"]["TrainingArguments"]
    assert arguments["learning_rate"] == 5e-6
    assert arguments["adam_epsilon"] == 1e-8


def test_a_wrong_structure_is_told_with_its_path() -> None:
    there = tuning(inputt={}, input=None)
    assert list(schema.faults(there)) == [
        "tuning.input is missing",
        "tuning.inputt is unknown; did you mean input?",
    ]
    assert "tuning.method is 1; it must be of type string" in schema.faults(tuning(method=1))


def test_a_clusters_own_schema_is_what_counts() -> None:
    strict = copy.deepcopy(dict(schema.WORKSPACE))
    strict["properties"]["tuning"]["properties"]["method"]["enum"] = ["qlora"]  # type: ignore[index]
    version = {"name": "v1beta1", "served": True, "schema": {"openAPIV3Schema": strict}}
    found = schema.of_crd({"spec": {"versions": [version]}})
    assert found == strict
    with pytest.raises(PlanError, match=r"tuning.method is 'lora'; allowed: qlora"):
        workspace.manifests(planned(job()), IMAGE, structure=found)
    assert schema.of_crd({"spec": {"versions": [version | {"served": False}]}}) is None


def sections(there: workspace.Manifests) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(there.config_maps[0]["data"][FILE])["training_config"]
    return found


def texts(name: str) -> st.SearchStrategy[str]:
    """Text that may stand behind a knob."""
    knob = KNOBS[name]
    if knob.choices:
        chosen = sayable.limits(job(), IMAGE).choices.get(name, knob.choices)
        return st.sampled_from(chosen)
    if knob.kind == "bool":
        return st.sampled_from(["true", "false"])
    low, high = knob.low or 0, knob.high or 10
    if knob.kind == "int":
        return st.integers(int(low), int(high)).map(str)
    return st.floats(low, high, exclude_min=knob.low_open, allow_subnormal=False).map(repr)


KNOB_TEXTS = st.fixed_dictionaries({}, optional={name: texts(name) for name in KEYS})


@given(
    model=st.sampled_from([name for name in catalog() if name.lower() in PRESETS]),
    hyperparameters=KNOB_TEXTS,
    to=st.sampled_from([IMAGE, CLAIM]),
    size=st.sampled_from([None, "Standard_ND96asr_v4", "p4d.24xlarge"]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_job_that_is_planned_makes_a_workspace_that_kaito_takes(
    model: str, hyperparameters: dict[str, str], to: KaitoSettings, size: str | None
) -> None:
    resources = {"resources": {"instance_types": [size]}} if size else {}
    given = job(model=model, hyperparameters=hyperparameters, **resources)
    plan = planned(given, to)
    there = workspace.manifests(plan, to)
    jsonschema.validate(there.workspace, schema.WORKSPACE)  # not by our own code
    assert not list(rules.faults(there.workspace, there.config_maps[0]))
    assert there.workspace["tuning"]["method"] == method(plan.values)
    config = sections(there)
    for knob, text in hyperparameters.items():  # nothing that was asked for is dropped
        section, key = KEYS[knob]
        is_quiet = knob == "bnb_4bit_quant_type" and method(plan.values) == "lora"
        keeps_all = knob == "save_total_limit" and read(KNOBS[knob], text) == -1
        assert key in config[section] or is_quiet or keeps_all
    assert workspace.read_yaml(there.to_yaml()) == [*there.config_maps, there.workspace]
