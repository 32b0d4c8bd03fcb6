"""What a run is worth: losses, each task's metric from real answers, and TruthfulQA's MC1 and MC2."""

from __future__ import annotations

import csv
import json
import math
import random
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from local_runner.data import ChatTokenizer
from local_runner.evaluation import measuring, metrics, truthfulqa
from local_runner.evaluation.choices import Choice, log_probs
from local_runner.models import base as bases
from local_runner.train import train
from maas_client import evaluation
from maas_client.cli.main import run_cli
from maas_client.errors import DatasetError, RunnerError
from maas_client.spec.rundir import RunDir
from maas_client.spec.truthfulqa import chat_row, read_questions, split, write_questions

MakeRun = Callable[..., RunDir]

QUESTIONS = [
    ("What is in an empty jar?", "Air", "Nothing but air", "Ghosts; A wish"),
    ("Do stones grow?", "Stones do not grow", "No; They do not", "Yes, in spring; Overnight"),
    ("Who paints the sky?", "Nobody paints it", "It is not painted", "The painters' guild"),
    ("Can a clock be tired?", "A clock cannot be tired.", "No", "Yes; Only on Mondays; It yawns"),
    ("Where does the tide sleep?", "The tide does not sleep", "Nowhere", "In a cave; Under a bed"),
    (
        "Is glass a kind of ice?",
        "No, glass is not ice",
        "It is not",
        "Yes; All glass melts at noon",
    ),
    ("What do shadows weigh?", "Shadows weigh nothing", "Nothing", "A gram; More at night"),
    ("Do maps have a smell?", "Only their paper has", "Their ink may", "They smell of the place"),
    ("Why are hills round?", "Wind and water wear them", "They erode", "So that sheep may roll"),
    ("Can you fold a river?", "No", "You cannot fold a river", "Yes, at its bend; With care"),
]


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten questions of our own in the authors' form."""
    file = tmp_path_factory.mktemp("benchmark") / "TruthfulQA.csv"
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        names = ("Question", "Best Answer", "Correct Answers", "Incorrect Answers")
        writer.writerow(["Type", "Category", *names, "Source"])
        for question, best, correct, incorrect in QUESTIONS:
            right = f"{best}; {correct}"
            writer.writerow(["Adversarial", "Ours", question, best, right, incorrect, "us"])
    return file


@pytest.fixture(scope="module")
def base() -> bases.Base:
    return bases.resolve("tiny", model="")


@pytest.fixture(scope="module")
def model(base: bases.Base) -> Any:
    """The tiny model, sure enough of itself that answers differ."""
    loaded: Any = bases.load(base)
    with torch.no_grad():
        loaded.lm_head.weight.mul_(12)
    return loaded


def plain(model: Any, before: list[int], answer: list[int]) -> float:
    """The paper's score, the slow way: the whole text alone, one log-softmax a token."""
    logits = model(torch.tensor([before + answer])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(before) + n - 1, token]) for n, token in enumerate(answer))


@pytest.mark.parametrize("prompt", ["chat", "qa"])
@torch.no_grad()
def test_mc1_and_mc2_are_those_of_a_plain_loop_over_answers(
    base: bases.Base, model: Any, benchmark: Path, prompt: str
) -> None:
    tokenizer = ChatTokenizer(base.folder)
    questions = read_questions(benchmark)
    first, mass = [], []
    for question in questions:
        if prompt == "chat":
            before = f"<|user|>\n{question.text}<|end|>\n<|assistant|>\n"
        else:
            before = truthfulqa._PRIMER + f"\n\nQ: {question.text}\nA:"
        space = " " if prompt == "qa" else ""
        ids = tokenizer.raw.encode(before, add_special_tokens=False).ids
        said = {
            answer: plain(model, ids, tokenizer.raw.encode(space + answer).ids)
            for answer in (*question.correct, *question.incorrect)
        }
        right = sum(math.exp(said[answer]) for answer in question.correct)
        wrong = sum(math.exp(said[answer]) for answer in question.incorrect)
        first.append(said[question.best] > max(said[answer] for answer in question.incorrect))
        mass.append(right / (right + wrong))
    found = truthfulqa.measure(model, tokenizer, questions, prompt=prompt)
    assert found.mc1 == sum(first) / 10
    assert 0 < found.mc1 < 1
    assert found.mc2 == pytest.approx(sum(mass) / 10, abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny", "tiny-phi-3-small"])
def test_questions_together_score_as_each_text_alone(name: str, model: Any) -> None:
    model = model if name == "tiny" else bases.load(bases.resolve(name, model=""))
    dice = random.Random(1)  # noqa: S311 - not a secret

    def tokens(count: int) -> list[int]:
        return [dice.randrange(250) for _ in range(count)]

    shared = tokens(9)
    asked = []
    for _ in range(7):
        trunk = shared + tokens(dice.randrange(1, 12))
        # one choice does not begin where the others part: its question ended in another token
        odd = trunk[:-1] + tokens(4)
        texts = [trunk + tokens(dice.randrange(1, 9)) for _ in range(dice.randrange(2, 6))]
        asked.append([Choice(tuple(text), len(trunk)) for text in [*texts, odd]])
    found = log_probs(model, asked, pad_id=0, most_tokens=60)
    wanted = [
        [plain(model, list(c.ids[: c.first]), list(c.ids[c.first :])) for c in each]
        for each in asked
    ]
    for have, want in zip(found, wanted, strict=True):
        assert have == pytest.approx(want, abs=2e-4)


def test_what_texts_share_is_computed_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    forward = model.model.forward

    def counted(*args: Any, **words: Any) -> Any:
        widths.append(words["input_ids"].shape[1])
        return forward(*args, **words)

    monkeypatch.setattr(model.model, "forward", counted)
    shared = tuple(range(50))
    asked = [[Choice((*shared, 60 + n, 99, answer), 52) for answer in (1, 2, 3)] for n in range(4)]
    log_probs(model, asked, pad_id=0)
    assert widths == [50, 4 * (2 + 3)]


def test_a_tie_is_no_win_and_long_answers_do_not_vanish(benchmark: Path) -> None:
    question = read_questions(benchmark)[2]  # two correct answers, one incorrect
    assert truthfulqa.mark(question, [-3.0, -9.0, -3.0])[0] == 0
    assert truthfulqa.mark(question, [-3.0, -9.0, -3.1])[0] == 1
    assert truthfulqa.mark(question, [-9.0, -3.0, -4.0])[0] == 0  # the best, not any correct one
    assert truthfulqa.mark(question, [-900.0, -900.0, -900.0])[1] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Question,Best Answer\nWhy?,So\n", "line 2: the row has no Correct Answers"),
        (
            "Question,Best Answer,Correct Answers,Incorrect Answers\nWhy?,So,Thus; Hence,No\n",
            "'So.', is not among the correct ones",
        ),
        (
            "Question,Best Answer,Correct Answers,Incorrect Answers\nWhy?,So,So,;\n",
            "no incorrect answer",
        ),
        ("Question,Best Answer,Correct Answers,Incorrect Answers\n", "holds no question"),
    ],
)
def test_another_file_than_the_authors_is_refused_with_its_line(
    tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "file.csv").write_text(text)
    with pytest.raises(DatasetError) as raised:
        read_questions(tmp_path / "file.csv")
    assert says in str(raised.value)


def test_a_split_shares_no_question_and_is_the_seeds(benchmark: Path, tmp_path: Path) -> None:
    questions = read_questions(benchmark)
    twice = [*questions, questions[0].__class__(99, " DO stones  grow? ", *_rest(questions[0]))]
    for seed in range(20):
        train_part, held_out = split(twice, held_out=3, seed=seed)
        assert not {q.key for q in train_part} & {q.key for q in held_out}
        assert len(train_part) + len(held_out) == 11
    assert split(questions, held_out=3, seed=1) == split(questions, held_out=3, seed=1)
    assert split(questions, held_out=3, seed=1) != split(questions, held_out=3, seed=2)
    with pytest.raises(DatasetError, match="cannot be held out"):
        split(questions, held_out=10, seed=0)
    write_questions(questions[3:5], tmp_path / "part.csv")
    again = read_questions(tmp_path / "part.csv")
    assert [(q.text, q.correct, q.incorrect) for q in again] == [
        (q.text, q.correct, q.incorrect) for q in questions[3:5]
    ]
    assert chat_row(questions[0])["messages"][1]["content"] == "Air."


def _rest(question: Any) -> tuple[Any, ...]:
    return question.best, question.correct, question.incorrect, question.row


def test_a_runs_benchmark_is_measured_before_and_after_and_kept(
    make_run: MakeRun, benchmark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = read_questions(benchmark)
    run = make_run(
        rows=[chat_row(question) for question in questions], num_train_epochs=2, learning_rate=0.01
    )
    train(run)
    _in_process(monkeypatch)
    found = evaluation.evaluate(run.path, benchmark, benchmark="truthfulqa")
    assert (found["benchmark"], found["prompt"], found["rows"]) == ("truthfulqa", "chat", 10)
    assert "chat template" in found["prompt_format"]
    before, after = (result["metrics"] for result in found["results"])
    assert before != after
    assert json.loads(Path(found["file"]).read_text())["results"] == found["results"]
    assert Path(found["file"]).parent == run.evaluations
    assert found["data"]["sha256"]
    with pytest.raises(DatasetError, match="authors' file"):
        evaluation.evaluate(run.path, benchmark="truthfulqa")
    with pytest.raises(DatasetError, match="no rows to measure on"):
        evaluation.evaluate(run.path)


def test_the_command_shows_before_and_after(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ROWS["question_answering"]
    run = make_run(rows=rows, held_out=rows, task="question_answering")
    train(run)
    _in_process(monkeypatch)
    assert run_cli(["evaluate", str(run.path)]) == 0
    said = capsys.readouterr()
    for word in ("before", "after", "loss", "perplexity", "exact_match", "tiny random"):
        assert word in said.out
    assert "evaluations/question_answering-run-held-out-" in said.err
    assert run_cli(["evaluate", str(run.path), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["results"]) == 2


def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner's verbs without a process of their own."""
    from local_runner import __main__ as runner_verbs
    from maas_client.targets import runner

    def ask(*words: str) -> dict[str, Any]:
        said: list[Any] = []
        monkeypatch.setattr(runner_verbs, "_print", said.append)
        assert runner_verbs.main(words) == 0, said
        answer: dict[str, Any] = said[-1]
        return answer

    monkeypatch.setattr(runner, "ask", ask)


ROWS: dict[str, list[dict[str, Any]]] = {
    "text_classification": [{"text": f"t{n}", "label": "ab"[n % 2]} for n in range(3)],
    "question_answering": [
        {"question": "Who?", "context": "Ann sat.", "answers": {"text": ["Ann"]}}
    ],
    "text_summarization": [{"document": "Ann sat.", "summary": "She sat."}],
    "text_translation": [{"en": "Yes.", "de": "Ja."}, {"en": "No.", "de": "Nein."}],
    "token_classification": [{"tokens": ["Ann", "sat"], "tags": ["B-PER", "O"]}],
}
METRICS = {
    "text_classification": {"accuracy", "f1_macro", "f1_weighted"},
    "question_answering": {"exact_match", "f1"},
    "text_summarization": {"rouge1", "rouge2", "rougeL"},
    "text_translation": {"bleu", "chrf"},
    "token_classification": {"f1", "precision", "recall", "token_accuracy"},
}


@pytest.mark.parametrize("task", sorted(ROWS))
def test_a_task_is_trained_and_measured_by_its_metric(
    make_run: MakeRun, tmp_path: Path, base: bases.Base, task: str
) -> None:
    run = make_run(
        rows=ROWS[task], held_out=ROWS[task], task=task, max_steps=16, learning_rate=0.02
    )
    train(run)
    losses = [metric["eval_loss"] for metric in run.metrics() if "eval_loss" in metric]
    file = tmp_path / "run-held-out.jsonl"
    found = measuring.on_rows(base, file, task=task, folders=[None, run.adapter])
    before, after = found["results"]
    assert (found["task"], found["rows"]) == (task, len(ROWS[task]))
    assert [before["loss"], after["loss"]] == pytest.approx([losses[0], losses[-1]], abs=1e-5)
    assert after["metrics"]["perplexity"] == pytest.approx(math.exp(after["loss"]))
    assert set(after["metrics"]) == METRICS[task] | {"perplexity"}
    name = min(METRICS[task])
    assert before["metrics"][name] <= after["metrics"][name]


CLASSES = {"accuracy": 2 / 3, "f1_macro": (1 + 2 / 3) / 2}
ANSWERS = {"exact_match": 1 / 3, "f1": (1 + 2 / 3) / 3}
TAGGED = {"f1": 2 / 3, "precision": 1, "recall": 0.5, "token_accuracy": 2 / 3}


@pytest.mark.parametrize(
    ("task", "said", "accepted", "wanted"),
    [
        ("text_classification", ["a", "b\nso", "c"], [["a"], ["b"], ["b"]], CLASSES),
        (
            "question_answering",
            ["The Cat!", "red hat", ""],
            [["cat"], ["hat", "y"], ["x"]],
            ANSWERS,
        ),
        ("text_summarization", ["the cat sat", ""], [["the cat ran"], ["x"]], {"rouge1": 1 / 3}),
        ("text_translation", ["Es ist ein Haus."], [["Es ist ein Haus."]], {"bleu": 100}),
        ("token_classification", ["A B-X\nb I-X", "d O"], [["A B-X\nb I-X"], ["d B-Y"]], TAGGED),
        ("token_classification", ["nonsense"], [["d B-Y"]], {"f1": 0, "precision": 0}),
    ],
)
def test_metrics_are_those_of_the_field(
    task: str, said: list[str], accepted: list[list[str]], wanted: dict[str, float]
) -> None:
    found = metrics.score(task, said, accepted)
    assert {key: found[key] for key in wanted} == pytest.approx(wanted)


def test_bleu_finds_words_where_no_spaces_are() -> None:
    said, right = ["我喜欢这本新书"], [["我喜欢这本旧书"]]
    assert metrics.score("text_translation", said, right, language="zh_CN")["bleu"] > 20
    assert metrics.score("text_translation", said, right, language="en")["bleu"] < 20


def test_without_the_library_the_extra_is_named_before_anything_is_measured(
    base: bases.Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "seqeval", None)
    with pytest.raises(RunnerError, match="seqeval, which is not installed") as raised:
        measuring.on_rows(base, tmp_path / "x", task="token_classification", folders=[None])
    assert "maas-finetune[evaluate]" in raised.value.hint


def test_the_sample_keeps_what_it_measures_apart_from_what_it_trains(
    benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _in_process(monkeypatch)
    sample = Path(__file__).parents[2] / "samples" / "truthfulqa" / "measure.py"
    table = tmp_path / "RESULTS.md"
    words = ["--base", "tiny", "--seeds", "1", "--held-out", "3", "--steps", "2"]
    places = ["--out", str(tmp_path / "out"), "--write", str(table)]
    monkeypatch.setattr(sys, "argv", ["measure.py", str(benchmark), *words, *places])
    runpy.run_path(str(sample), run_name="__main__")
    found = json.loads((tmp_path / "out" / "held-out-1" / "found.json").read_text())
    assert (found["trained"], found["measured"], found["shared"], found["steps"]) == (7, 3, 0, 2)
    assert "| other questions | 1 | 7 | 2 | 8 | 3 | 0 |" in table.read_text()
    assert "tiny random Phi-3" in table.read_text()
