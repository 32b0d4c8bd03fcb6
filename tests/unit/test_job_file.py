"""Loading job files: every fault at once, and nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas_client.errors import SpecError
from maas_client.spec.loading import dump_job, load_job, parse_job
from tests.conftest import JOB


def faults(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse_job(text)
    return [str(problem) for problem in caught.value.problems]


def test_a_good_file_loads(job_folder: Path) -> None:
    job = load_job(job_folder / "job.yaml")
    assert job.model.asset_name == "Phi-3-mini-4k-instruct"
    assert job.model.version == "15"
    assert job.registered_model == "my-model"
    assert job.hyperparameters == {"learning_rate": "0.00002"}


def test_every_fault_is_reported_at_once_with_its_line_and_the_nearest_name() -> None:
    text = JOB.replace("task: chat_completion", "task: chat_complation")
    text = text.replace('  learning_rate: "0.00002"', '  lerning_rate: banana\n  lora_r: "0"')
    text = text.replace("training_data:", "trainin_data:")
    assert faults(text) == [
        "line 1: training_data is missing (for example training_data: {path: train.jsonl, type: uri_file})",
        "line 3: task is 'chat_complation' (did you mean chat_completion?)",
        "line 8: trainin_data is not a key of a job file (did you mean training_data?)",
        "line 12: hyperparameters.lerning_rate is not a known hyperparameter (did you mean learning_rate?)",
        "line 13: hyperparameters.lora_r is '0': too small (allowed: a whole number from 1 to 1024)",
    ]


def test_a_number_without_quotes_is_refused_as_azure_refuses_it() -> None:
    (fault,) = faults(JOB.replace('"0.00002"', "0.00002"))
    assert 'write "2e-05" in quotes' in fault
    assert fault.startswith("line 12:")


def test_another_service_is_refused_by_its_name() -> None:
    (fault,) = faults(JOB.replace("model_provider: custom", "model_provider: azure_openai"))
    assert "Azure OpenAI" in fault
    assert fault.startswith("line 4:")


def test_read_only_keys_of_a_dumped_job_are_dropped() -> None:
    dumped = (
        "status: Completed\nid: azureml:/x\nservices: {}\ncreation_context: {}\nlog_files: {a: b}\n"
    )
    assert parse_job(JOB + dumped) == parse_job(JOB)


def test_a_key_given_twice_is_a_fault() -> None:
    (fault,) = faults(JOB + "name: a\nname: b\n")
    assert "name is given twice (the first is on line 17; keep one)" in fault


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"),
        ("- a\n- b\n", "mapping"),
        ("a: [1,\n", "not YAML"),
        ("a: &x 1\nb: *x\n", "aliases"),
        ("a: !!python/object/apply:os.system [ls]\n", "fault"),
    ],
)
def test_what_is_not_a_job_file_is_said_in_one_line(text: str, word: str) -> None:
    with pytest.raises(SpecError, match=word):
        parse_job(text)


def test_deep_nesting_does_not_break_the_reader() -> None:
    with pytest.raises(SpecError, match="nested too deeply"):
        parse_job("a: " + "[" * 100_000 + "]" * 100_000)


def test_bytes_that_are_not_text_are_said(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="UTF-8"):
        load_job(tmp_path / "job.yaml")


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="No such file"):
        load_job(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("path", "name", "version"),
    [
        (
            "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/15",
            "Phi-3-mini-4k-instruct",
            "15",
        ),
        (
            "azureml://registries/azureml/models/Phi-4-mini-instruct/labels/latest",
            "Phi-4-mini-instruct",
            None,
        ),
        ("azureml:my-model:3", "my-model", "3"),
        ("azureml:my-model@latest", "my-model", None),
        ("Phi-3.5-mini-instruct", "Phi-3.5-mini-instruct", None),
    ],
)
def test_a_model_can_be_written_in_every_form(path: str, name: str, version: str | None) -> None:
    job = parse_job(
        JOB.replace("azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/15", path)
    )
    assert (job.model.asset_name, job.model.version) == (name, version)


def test_paths_are_relative_to_the_file(job_folder: Path) -> None:
    job = load_job(job_folder / "job.yaml")
    assert job.training_data.local_path(job_folder) == job_folder / "train.jsonl"


def test_a_job_written_elsewhere_still_finds_its_rows(job_folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "deep" / "er"
    moved = load_job(job_folder / "job.yaml").rebased(job_folder, elsewhere)
    assert moved.training_data.local_path(elsewhere) == job_folder / "train.jsonl"


texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20)


@given(
    description=st.none() | texts.filter(bool),
    tags=st.dictionaries(texts.filter(bool), st.none() | texts, max_size=3),
    rate=st.sampled_from(["2e-5", "0.00002", "1E-5", " 1e-6 "]),
    epochs=st.integers(1, 9).map(str),
)
def test_a_job_survives_being_written_and_read(
    description: str | None, tags: dict[str, str | None], rate: str, epochs: str
) -> None:
    job = parse_job(JOB).model_copy(
        update={
            "description": description,
            "tags": tags,
            "hyperparameters": {"learning_rate": rate, "num_train_epochs": epochs},
        }
    )
    assert parse_job(dump_job(job)) == job
