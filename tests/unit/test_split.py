"""Rows are held out by lot, and no question is on both sides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from maas_client import flow, planning
from maas_client.errors import DatasetError, RunnerError, SpecError
from maas_client.plan import plan_from_json
from maas_client.settings import LocalSettings
from maas_client.spec.dataset import check
from maas_client.spec.split import normal, split_file
from maas_client.targets import runner
from maas_client.targets.local import LocalTarget


def chat(*turns: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]}


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def parts(
    file: Path, *, fraction: float = 0.25, seed: int = 42, task: str = "chat_completion"
) -> Any:
    into = (file.with_suffix(".a"), file.with_suffix(".b"))
    train, held, made = split_file(check(file, task), fraction=fraction, seed=seed, into=into)
    lines = [Path(report.path).read_text().splitlines() for report in (train, held)]
    assert (train.rows, held.rows) == (len(lines[0]), len(lines[1]))
    return *lines, made


ASKED = st.sampled_from(
    ["Where?", "where", " WHERE ", "Why not", "why  not?", "Who", "When", "\uff37ho", "???"]
)
LATER = st.sampled_from(["yes, please", "And how far is it", "and how FAR is it?", "thanks"])
TALK = st.lists(st.tuples(ASKED, st.none() | LATER), min_size=2, max_size=12)


@settings(max_examples=60, deadline=None)
@given(talks=TALK, fraction=st.floats(0.05, 0.95), seed=st.integers(0, 3))
def test_no_question_is_on_both_sides_and_no_row_is_lost(
    tmp_path_factory: pytest.TempPathFactory,
    talks: list[tuple[str, str | None]],
    fraction: float,
    seed: int,
) -> None:
    rows = [
        chat(asked, str(n), *((later, "ok") if later else ()))
        for n, (asked, later) in enumerate(talks)
    ]
    file = write(tmp_path_factory.mktemp("split") / "rows.jsonl", rows)
    try:
        train, held, made = parts(file, fraction=fraction, seed=seed)
    except DatasetError:
        reject()  # all of them ask the same
    assert sorted(train + held) == sorted(file.read_text().splitlines())
    assert train
    assert held
    assert made.rows == len(rows)
    sides = []
    for lines in (train, held):
        turns = [turn for line in lines for turn in json.loads(line)["messages"]]
        asked = {normal(turn["content"]) for turn in turns if turn["role"] == "user"}
        sides.append(asked - {normal("yes, please"), normal("thanks")})
    assert not sides[0] & sides[1]


def test_a_later_question_ties_rows_in_scripts_without_spaces_too(tmp_path: Path) -> None:
    later, thanks = "日本の首都はどこですか", "ありがとう"
    rows = [chat(f"{n}", "a", later if n < 4 else thanks, "b") for n in range(8)]
    train, held, made = parts(write(tmp_path / "rows.jsonl", rows), fraction=0.5)
    assert made.groups == 5
    assert len({json.dumps(later) in line for line in held}) == 1
    assert train


def test_the_same_seed_parts_the_same_rows_in_any_order(tmp_path: Path) -> None:
    rows = [chat(f"What is {n}?", str(n)) for n in range(20)]
    train, held, made = parts(write(tmp_path / "rows.jsonl", rows))
    assert (len(train), len(held), made.groups) == (15, 5, 20)
    turned, held_turned, _ = parts(write(tmp_path / "turned.jsonl", rows[::-1]))
    assert turned == train[::-1]
    assert held_turned == held[::-1]
    _, other, _ = parts(tmp_path / "rows.jsonl", seed=7)
    assert sorted(other) != sorted(held)


def test_a_passage_stays_on_one_side(tmp_path: Path) -> None:
    rows = [
        {"question": f"What is {n}?", "context": f"Passage {n // 4}.", "answers": {"text": ["it"]}}
        for n in range(16)
    ]
    train, held, _ = parts(write(tmp_path / "rows.jsonl", rows), task="question_answering")
    contexts = [{json.loads(line)["context"] for line in lines} for lines in (train, held)]
    assert (len(held), contexts[0] & contexts[1]) == (4, set())


@pytest.mark.parametrize(
    ("rows", "fraction", "why"),
    [
        ([chat("a", "b")], 0.5, "1 row"),
        ([chat("Why?", "b"), chat(" why", "c")], 0.5, "share their questions"),
        ([chat("a", "b"), chat("c", "d")], 0.0, "is none"),
        ([chat("a", "b"), chat("c", "d")], 1.0, "is none"),
    ],
)
def test_rows_that_cannot_be_parted_are_refused(
    tmp_path: Path, rows: list[dict[str, Any]], fraction: float, why: str
) -> None:
    with pytest.raises(DatasetError, match=why):
        parts(write(tmp_path / "rows.jsonl", rows), fraction=fraction)


def test_two_rows_are_one_and_one_whatever_the_share(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [chat("a", "b"), chat("c", "d")])
    for fraction in (0.01, 0.99):
        train, held, _ = parts(file, fraction=fraction)
        assert (len(train), len(held)) == (1, 1)


def test_split_writes_beside_the_rows_and_over_nothing(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("prompt,completion\n" + "".join(f"What is {n}?, {n}\n" for n in range(10)))
    train, held, _ = planning.split(file, "text_completion", fraction=0.2, seed=1)
    assert Path(train.path).name == "rows.train.jsonl"
    assert (train.rows, held.rows) == (8, 2)
    with pytest.raises(DatasetError, match="there already"):
        planning.split(file, "text_completion", fraction=0.2, seed=1)


@pytest.fixture
def job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAAS_HOME", str(tmp_path / "home"))
    write(tmp_path / "train.jsonl", [chat(f"What is {n}?", str(n)) for n in range(10)])
    file = tmp_path / "job.yaml"
    file.write_text(
        "type: finetuning\ntask: chat_completion\nmodel_provider: custom\n"
        "model: {path: azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/15,"
        " type: mlflow_model}\n"
        "training_data: {path: train.jsonl, type: uri_file}\n"
        "hyperparameters: {seed: '7'}\n"
        "outputs: {registered_model: {name: m, type: mlflow_model}}\n"
    )
    return file


def _no_weights(*_: object, **__: object) -> None:
    raise RunnerError("there are none")


def test_a_plan_records_the_split_and_names_both_files(
    job_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "count_tokens", _no_weights)
    target = LocalTarget(LocalSettings(name="local", runs=str(job_file.parent)), engine="simulate")
    plan = flow.plan_job(job_file, target, validation_split=0.3)
    assert plan.validation is not None
    assert plan.job.validation_data is not None
    assert plan.validation.report is not None
    assert plan.training.report is not None
    assert (plan.training.report.rows, plan.validation.report.rows) == (7, 3)
    assert plan.split is not None
    assert (plan.split.seed, plan.split.fraction, plan.split.rows) == (7, 0.3, 10)
    assert Path(plan.job.validation_data.path).samefile(plan.validation.path)
    assert plan_from_json(plan.to_json()).split == plan.split
    again = flow.plan_job(job_file, target, validation_split=0.3)
    assert again.meaning == plan.meaning


def test_rows_are_not_split_off_a_job_that_names_its_own(
    job_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "count_tokens", None)
    text = job_file.read_text()
    job_file.write_text(text + "validation_data: {path: train.jsonl, type: uri_file}\n")
    target = LocalTarget(LocalSettings(name="local", runs=str(job_file.parent)), engine="simulate")
    with pytest.raises(SpecError, match="names validation_data"):
        flow.plan_job(job_file, target, validation_split=0.3)
