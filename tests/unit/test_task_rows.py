"""Rows of every task: which are good, what is said of the others, and what the model is asked and told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from maas_client import flow
from maas_client.cli.main import run_cli
from maas_client.errors import DatasetError, RunnerError
from maas_client.plan import DataPlan, make_plan, plan_from_json
from maas_client.spec.dataset import as_jsonl, check, numbered_rows
from maas_client.spec.hyperparameters import KNOBS
from maas_client.spec.job import FineTuningJob
from maas_client.spec.limits import Limits, local_limits
from maas_client.spec.loading import load_job
from maas_client.spec.tasks import TASKS, conversation, find_task, tags_of
from maas_client.targets import runner

CONTEXT = "Vines were planted in 1964 by monks."
GOOD: dict[str, list[dict[str, Any]]] = {
    "text_classification": [
        {"text": "I am glad", "label": 3, "label_string": "joy"},
        {"sentence": "They won't buy it.", "label": True, "idx": 0},
        {"sentence1": "It rains.", "sentence2": "Water falls.", "label": 1},
    ],
    "question_answering": [
        {
            "question": "When?",
            "context": CONTEXT,
            "answers": {"text": ["1964", "in 1964"], "answer_start": [22, 19]},
        },
        {"question": "Who?", "context": CONTEXT, "answers": {"text": ["monks"]}},
    ],
    "text_summarization": [
        {"document": "A long tale.", "summary": "A tale."},
        {"article": "A long tale.", "highlights": "A tale.", "id": "7"},
        {"dialogue": "A: hm", "summary": "A hums."},
    ],
    "text_translation": [
        {"en": "A joke.", "ro": "O glumă."},
        {"translation": {"de_DE": "Ja.", "en": "Yes."}},
    ],
    "token_classification": [
        {"tokens": ["EU", "rejects"], "ner_tags_str": '["B-ORG", "O"]'},
        {"tokens": "['New', 'York']", "ner_tags_str": ["B-LOC", "I-LOC"], "ner_tags": [5, 6]},
    ],
    "text_completion": [{"text": "All of it."}, {"prompt": "a", "ground_truth": "b"}],
}


def file_of(tmp_path: Path, *rows: object) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("task", sorted(GOOD))
def test_rows_as_azures_examples_have_them_are_good(tmp_path: Path, task: str) -> None:
    report = check(file_of(tmp_path, *GOOD[task]), task)
    assert report.ok, report.problems
    assert (report.rows, report.turns) == (len(GOOD[task]), len(GOOD[task]))


@pytest.mark.parametrize(
    ("task", "row", "code", "points_at", "says"),
    [
        ("text_classification", ["x"], "not_an_object", "[", "sentence1 or sentence or text"),
        ("text_classification", {"text": "x"}, "columns", "{", "label_string or label"),
        ("text_classification", {"Sentence1": "x", "label": 1}, "columns", "{", "rename Sentence1"),
        ("text_classification", {"text": "x", "label": 0.5}, "not_text", "0.5", "a number"),
        ("text_classification", {"text": "x", "label": "a\nb"}, "two_lines", '"a', "one line"),
        ("text_classification", {"text": 3, "label": "a"}, "not_text", "3", "not text"),
        (
            "text_classification",
            {"text": "x", "sentence2": " ", "label": "a"},
            "empty_content",
            '" "',
            "empty",
        ),
        ("question_answering", {"question": "x", "context": "y"}, "columns", "{", "no answers"),
        (
            "question_answering",
            {"question": "x", "context": "y", "answers": "z"},
            "answers",
            '"z"',
            "not an object",
        ),
        (
            "question_answering",
            {"question": "x", "context": "y", "answers": {"text": []}},
            "answers",
            "[]",
            "nothing to learn",
        ),
        (
            "question_answering",
            {
                "question": "x",
                "context": CONTEXT,
                "answers": {"text": ["monks"], "answer_start": [3]},
            },
            "answer_start",
            "3]",
            "it begins at 30",
        ),
        (
            "question_answering",
            {"question": "x", "context": "y", "answers": {"text": ["y"], "answer_start": [0, 1]}},
            "answers",
            "[0, 1]",
            "2 places for 1 texts",
        ),
        (
            "question_answering",
            {"question": "x", "context": "y", "answers": {"text": ["y"], "answer_start": ["0"]}},
            "answer_start",
            '"0"',
            "whole number",
        ),
        ("text_summarization", {"summary": "x"}, "columns", "{", "document or article"),
        (
            "text_summarization",
            {"document": "x", "gist": "y"},
            "columns",
            "{",
            "document + summary",
        ),
        ("text_summarization", {"document": "x", "summary": ""}, "empty_content", '""', "empty"),
        ("text_translation", {"en": "x"}, "columns", "{", "no two languages"),
        ("text_translation", {"en": "x", "ro": "y", "de": "z"}, "columns", "{", "source language"),
        ("text_translation", {"en": "x", "ro": None}, "not_text", "null", "null"),
        ("text_translation", {"translation": {"en": "x", "ro": 1}}, "not_text", "1", "a number"),
        ("token_classification", {"tokens": ["a"], "tags": ["O", "O"]}, "length", '["O"', "2 tags"),
        ("token_classification", {"tokens": [], "tags": []}, "not_a_list", "[]", "empty list"),
        ("token_classification", {"tokens": "a b", "tags": ["O"]}, "not_a_list", '"a b"', "text"),
        ("token_classification", {"tokens": ["a"], "ner_tags": [3]}, "tag", "3", "B-ORG"),
        ("token_classification", {"tokens": ["a"], "tags": ["NOUN"]}, "tag", '"NOUN"', "O, or B-"),
        ("token_classification", {"tokens": ["a\nb"], "tags": ["O"]}, "two_lines", '"a', "line"),
        ("text_completion", {"text": "x", "other": "y"}, "columns", "{", "text + ground_truth"),
    ],
)
def test_a_bad_row_is_named_with_line_column_reason_and_fix(
    tmp_path: Path, task: str, row: object, code: str, points_at: str, says: str
) -> None:
    report = check(file_of(tmp_path, GOOD[task][0], row), task)
    first = report.problems[0]
    assert (first.code, first.line, report.bad_rows) == (code, 2, 1)
    assert first.column is not None
    line = Path(report.path).read_text().splitlines()[1]
    assert line[first.column - 1 :].startswith(points_at)
    assert says in f"{first.message} {first.hint}"


def test_a_column_that_is_not_read_is_remarked_once(tmp_path: Path) -> None:
    rows = [{"sentence": f"No {n}.", "label": 1, "idx": n} for n in range(3)]
    (warning,) = check(file_of(tmp_path, *rows), "text_classification").warnings
    assert (warning.code, warning.line) == ("unread", 1)
    assert warning.message.startswith("idx is not read")


@pytest.mark.parametrize(
    ("task", "number", "asks", "answer"),
    [
        ("text_classification", 0, "label only.\n\nI am glad", "joy"),
        ("text_classification", 1, "They won't buy it.", "true"),
        ("text_classification", 2, "First: It rains.\nSecond: Water falls.", "1"),
        ("question_answering", 0, f"Context: {CONTEXT}\n\nQuestion: When?", "1964"),
        ("text_summarization", 1, "Summarize the text.\n\nA long tale.", "A tale."),
        ("text_translation", 0, "from English to Romanian.\n\nA joke.", "O glumă."),
        ("text_translation", 1, "from German to English.\n\nJa.", "Yes."),
        ("token_classification", 0, "\n\nEU\nrejects", "EU B-ORG\nrejects O"),
        ("token_classification", 1, "\n\nNew\nYork", "New B-LOC\nYork I-LOC"),
    ],
)
def test_a_row_becomes_a_question_and_an_answer(
    task: str, number: int, asks: str, answer: str
) -> None:
    user, assistant = conversation(find_task(task), GOOD[task][number])["messages"]
    assert user["role"] == "user"
    assert user["content"].endswith(asks)
    assert assistant == {"role": "assistant", "content": answer}


def test_tags_are_read_line_by_line() -> None:
    like = "New B-LOC\nYork I-LOC\n. O"
    assert tags_of(like, like=like) == ["B-LOC", "I-LOC", "O"]
    assert tags_of("New B-LOC\nPort I-LOC", like=like) == ["B-LOC", "O", "O"]
    assert tags_of("New place\nYork", like=like) == ["O", "O", "O"]


QUOTED = 'sentence,label\n"Left, then right",way\nUp,way\n'


def test_csv_and_tsv_are_read_as_jsonl_is(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(QUOTED, encoding="utf-8-sig")
    (tmp_path / "rows.tsv").write_text("sentence\tlabel\nLeft, then right\tway\nUp\tway\n")
    wanted = [{"sentence": "Left, then right", "label": "way"}, {"sentence": "Up", "label": "way"}]
    for name in ("rows.csv", "rows.tsv"):
        report = check(tmp_path / name, "text_classification")
        assert report.ok, report.problems
        assert list(numbered_rows(tmp_path / name)) == [(2, wanted[0]), (3, wanted[1])]
        made = as_jsonl(report)
        assert [json.loads(line) for line in made.read_text().splitlines()] == wanted


def test_a_cell_holds_a_list_as_json_or_as_python_writes_it(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(
        'tokens,ner_tags_str\n"[""EU""]","[""B-ORG""]"\n"[\'It\', \'is\']","[\'O\', \'O\']"\n'
    )
    report = check(tmp_path / "rows.csv", "token_classification")
    assert report.ok, report.problems
    assert [row["tokens"] for _, row in numbered_rows(report.path)] == [["EU"], ["It", "is"]]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (b"sentence,label\na,b,c\n", 2, "3 cells, the header names 2"),
        (b"sentence,label\na,b\n\nc,\n", 4, "label is empty"),
        (b"sentence,sentence\na,b\n", 1, "twice"),
        (b"sentence,\na,b\n", 1, "column 2 has no name"),
        (b"text\na\n", 2, "label_string or label"),
        (b'sentence,label\n"a,b\n', 2, "cannot be read from here on"),
        (b"sentence,label\na,\xff\n", 1, "utf-8"),
        (b"sentence,label\n", None, "holds no row"),
    ],
)
def test_a_bad_table_is_said_with_its_line(
    tmp_path: Path, text: bytes, line: int | None, says: str
) -> None:
    (tmp_path / "rows.csv").write_bytes(text)
    report = check(tmp_path / "rows.csv", "text_classification")
    assert report.problems[0].line == line
    assert says in report.problems[0].message


def test_parquet_is_read_with_its_lists_and_without_its_nulls(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
        {"messages": [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B", "weight": 1}]},
    ]  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    report = check(tmp_path / "rows.parquet", "chat_completion")
    assert report.ok, report.problems
    assert [row for _, row in numbered_rows(report.path)] == rows
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DatasetError, match="no parquet file"):
        check(tmp_path / "rows.parquet", "chat_completion")


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(DatasetError) as raised:
        check(tmp_path / "rows.parquet", "chat_completion")
    assert "maas-finetune[parquet]" in raised.value.hint


def test_a_hosted_target_refuses_what_only_a_local_run_has(job_folder: Path) -> None:
    job = load_job(job_folder / "job.yaml").model_copy(update={"task": "text_classification"})
    data = DataPlan("train.jsonl")
    hosted = Limits(target="team", model=None, honoured=frozenset({"learning_rate"}), hosts=True)
    with pytest.raises(Exception, match="text_classification is not done here") as raised:
        make_plan(job, hosted, training=data)
    assert "--target local" in str(raised.value)
    assert "maas convert" in str(raised.value)
    assert local_limits(job.model).tasks == tuple(TASKS)


def test_a_tasks_rows_are_written_as_conversations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.csv").write_text(QUOTED)
    out = tmp_path / "chat.jsonl"
    words = ["convert", str(tmp_path / "rows.csv"), "--task", "text_classification", "--out"]
    assert run_cli([*words, str(out)]) == 0
    assert check(out, "chat_completion").rows == 2
    assert json.loads(out.read_text().splitlines()[1])["messages"][1]["content"] == "way"
    assert run_cli([*words, str(out)]) == 1
    assert "is there already" in capsys.readouterr().err
    (tmp_path / "rows.csv").write_text("sentence,label\na,\n")
    assert run_cli([*words, str(tmp_path / "other.jsonl")]) == 1
    assert not (tmp_path / "other.jsonl").exists()


class _Hosted:
    """As much of a target as a plan asks for."""

    name = "team"

    def limits(self, job: FineTuningJob) -> Limits:
        return Limits(target="team", model=None, honoured=frozenset(KNOBS), hosts=True)


def test_a_table_is_sent_to_a_service_as_jsonl(
    job_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAAS_HOME", str(job_folder / "home"))
    monkeypatch.setattr(runner, "count_tokens", _no_weights)
    (job_folder / "train.csv").write_text("text,ground_truth\nWhere?,Left.\n")
    text = (job_folder / "job.yaml").read_text().replace("train.jsonl", "train.csv")
    (job_folder / "job.yaml").write_text(text.replace("chat_completion", "text_completion"))
    target: Any = _Hosted()
    plan = flow.plan_job(job_folder / "job.yaml", target)
    sent = Path(plan.job.training_data.path)
    assert sent.read_text() == '{"text": "Where?", "ground_truth": "Left."}\n'
    assert plan.training.path == str(sent.resolve())
    assert "is not JSONL" in plan.warnings[0]
    again = plan_from_json(json.loads(json.dumps(plan.to_json())))
    assert again.training.converted_from == str(job_folder / "train.csv")
    assert again.meaning == plan.meaning


def _no_weights(*_: object, **__: object) -> None:
    raise RunnerError("none here")
