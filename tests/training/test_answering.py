"""The process that answers: the same words as transformers' own generate, adapters switched."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from local_runner import adapters
from local_runner.answering import serve
from local_runner.data import ChatTokenizer
from local_runner.generate import Answerer, Ask, draw
from local_runner.models import base as bases
from local_runner.models import tiny
from local_runner.simulate import simulate
from local_runner.speech import Ending, Speech
from local_runner.train import train
from maas_client.errors import BaseModelError, RunnerError
from maas_client.spec.rundir import RunDir
from maas_client.targets.runner import Answers

MakeRun = Callable[..., RunDir]
Runner = Callable[..., subprocess.Popen[str]]

ASKED = [{"role": "user", "content": "Where is tap 3?"}]


@pytest.fixture
def adapter(make_run: MakeRun) -> Path:
    """An adapter that changes what the tiny model says."""
    run = make_run(num_train_epochs=2, learning_rate=0.02)
    train(run)
    return run.adapter


def ask(answerer: Answerer, **how: Any) -> tuple[str, Ending]:
    *pieces, ending = answerer.answer(Ask(ASKED, **how))
    assert isinstance(ending, Ending)
    return "".join(map(str, pieces)), ending


def generated(adapter: Path | None, tokens: int) -> str:
    """What transformers' generate says."""
    model: Any = bases.load(bases.resolve("tiny", model="")).eval()
    if adapter:
        model = adapters.open_on(model, adapter).eval()
    tokenizer = ChatTokenizer(tiny.install())
    prompt = torch.tensor([tokenizer.prompt(ASKED)])
    out = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=tokens,
        do_sample=False,
    )
    text: str = tokenizer.raw.decode(out[0, prompt.shape[1] :].tolist(), skip_special_tokens=True)
    return text


def test_greedy_answers_are_those_of_generate_and_adapters_switch(adapter: Path) -> None:
    answerer = Answerer(bases.resolve("tiny", model=""))
    expected = {None: generated(None, 24), adapter: generated(adapter, 24)}
    assert expected[None] != expected[adapter]
    for which in (None, adapter, None, adapter):
        text, _ = ask(answerer, adapter=which, max_tokens=24)
        assert text == expected[which]


def test_an_answer_ends_where_the_limit_or_the_context_ends_it() -> None:
    answerer = Answerer(bases.resolve("tiny", model=""))
    _, cut = ask(answerer, max_tokens=3)
    assert (cut.finish_reason, cut.completion_tokens) == ("length", 3)
    long = [{"role": "user", "content": "x" * 504}]
    *_, full = answerer.answer(Ask(long, max_tokens=100_000))
    assert full == Ending("length", 510, 2)


def said(text: str, *stop: str) -> tuple[list[str], Ending]:
    """What the worker makes of a model that says this."""
    tokenizer = ChatTokenizer(tiny.install()).raw
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    speech = Speech(tokenizer, ends=(257, 261), stop=stop, prompt_tokens=5, limit=len(ids))
    pieces: list[str | Ending] = []
    for token in ids:
        pieces += speech.hear(token)
        if pieces and isinstance(pieces[-1], Ending):
            break
    ending = pieces.pop()
    assert isinstance(ending, Ending)
    return [str(piece) for piece in pieces], ending


def test_an_end_token_ends_the_answer_and_is_not_shown() -> None:
    pieces, ending = said("yes<|end|>no")
    assert "".join(pieces) == "yes"
    assert ending == Ending("stop", 5, 4)
    assert said("yes<|endoftext|>no")[0] == pieces


def test_a_stop_word_ends_the_answer_before_it() -> None:
    pieces, ending = said("Left of it. Then", "of i", "zzz")
    assert ("".join(pieces), ending.finish_reason) == ("Left ", "stop")


@pytest.mark.parametrize("end", ["", "<|end|>"])
def test_what_only_began_like_a_stop_word_is_said_after_all(end: str) -> None:
    assert "".join(said(f"Left off{end}", "fff")[0]) == "Left off"


def test_half_a_character_waits_for_its_other_half() -> None:
    assert said("aü€b") == (["a", "ü", "€", "b"], Ending("length", 5, 7))


def test_sampling_repeats_with_its_seed() -> None:
    answerer = Answerer(bases.resolve("tiny", model=""))
    how = {"temperature": 1.0, "max_tokens": 12}
    assert ask(answerer, seed=1, **how) == ask(answerer, seed=1, **how)
    assert ask(answerer, seed=1, **how) != ask(answerer, seed=2, **how)


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    logits = torch.log(torch.tensor([0.1, 0.5, 0.3, 0.1]))
    dice = torch.Generator().manual_seed(0)

    def drawn(top_p: float) -> set[int]:
        return {draw(logits, top_p, dice) for _ in range(300)}

    assert drawn(1.0) == {0, 1, 2, 3}
    assert drawn(0.79) == {1, 2}
    assert drawn(0.49) == {1}
    assert drawn(0.0) == {1}


def test_an_adapter_of_another_model_is_refused_and_the_next_question_answered(
    adapter: Path, make_run: MakeRun, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / adapters.CONFIG).write_bytes((adapter / adapters.CONFIG).read_bytes())
    tensors = load_file(adapter / adapters.WEIGHTS)
    save_file({k: v[:, :5].contiguous() for k, v in tensors.items()}, wrong / adapters.WEIGHTS)
    simulated = make_run("simulated")
    simulate(simulated, seconds=0)
    answerer = Answerer(bases.resolve("tiny", model=""))
    for folder, words in (
        (wrong, "another model"),
        (simulated.adapter, "simulated"),
        (tmp_path / "absent", "no adapter"),
    ):
        with pytest.raises(BaseModelError, match=words):
            ask(answerer, adapter=folder)
    assert ask(answerer, adapter=adapter, max_tokens=8)[0] == generated(adapter, 8)


def test_a_question_longer_than_the_context_is_refused() -> None:
    answerer = Answerer(bases.resolve("tiny", model=""))
    long = [{"role": "user", "content": "x" * 600}]
    with pytest.raises(RunnerError, match="context is 512"):
        list(answerer.answer(Ask(long)))


def test_bad_questions_get_an_error_and_the_process_lives_on() -> None:
    questions = "\n".join(
        [
            "no json",
            "[]",
            '{"id": "1"}',
            '{"id": "2", "messages": [{"role": "user", "content": null}]}',
            json.dumps({"id": "3", "messages": ASKED, "max_tokens": 2, "temperature": None}),
        ]
    )
    answers = io.StringIO()
    serve(bases.resolve("tiny", model=""), io.StringIO(questions + "\n"), answers)
    ready, *lines = (json.loads(line) for line in answers.getvalue().splitlines())
    assert ready["base"]["stand_in"] is True
    errors = [line for line in lines if "error" in line]
    assert [line["id"] for line in errors] == [None, None, "1", "2"]
    assert lines[-1]["done"] is True
    assert lines[-1]["usage"]["completion_tokens"] == 2


def test_whoever_asked_hears_that_an_answer_broke_and_the_others_are_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hear = Answerer._hear

    def fail_once(self: Answerer, answer: Any, token: int) -> None:
        if answer in self._apart:
            raise MemoryError("no room")
        hear(self, answer, token)

    admit = Answerer._admit

    def apart(self: Answerer, answer: Any) -> None:
        if answer.row.limit - len(answer.row.ids) != 3:
            return admit(self, answer)
        answer.tokens = self._tokens(answer)
        return self._apart.append(answer)

    monkeypatch.setattr(Answerer, "_hear", fail_once)
    monkeypatch.setattr(Answerer, "_admit", apart)
    words = [{"id": str(n), "messages": ASKED, "max_tokens": n} for n in (2, 3, 4)]
    answers = io.StringIO()
    asked = "".join(json.dumps(each) + "\n" for each in words)
    serve(bases.resolve("tiny", model=""), io.StringIO(asked), answers)
    lines = [json.loads(line) for line in answers.getvalue().splitlines()[1:]]
    ends = {line["id"]: line for line in lines if "delta" not in line}
    assert "no room" in ends["3"]["error"]["message"]
    assert [ends[n]["usage"]["completion_tokens"] for n in ("2", "4")] == [2, 4]


@pytest.fixture
def worker(start: Runner) -> Iterator[subprocess.Popen[str]]:
    child = start("answer", "--base", "tiny")
    yield child
    child.communicate(timeout=60)


def test_the_worker_answers_until_nobody_asks(worker: subprocess.Popen[str]) -> None:
    assert worker.stdin is not None
    assert worker.stdout is not None
    assert json.loads(worker.stdout.readline())["ready"] is True
    for number in ("1", "2"):
        question = {"id": number, "adapter": None, "messages": ASKED, "max_tokens": 4}
        worker.stdin.write(json.dumps(question) + "\n")
        worker.stdin.flush()
        text = ""
        while not (line := json.loads(worker.stdout.readline())).get("done"):
            assert line["id"] == number
            text += line["delta"]
        assert text == generated(None, 4)
    output, _ = worker.communicate(timeout=60)
    assert output == ""
    assert worker.returncode == 0


def test_the_worker_answers_several_at_once_and_drops_the_one_that_is_cancelled(
    worker: subprocess.Popen[str],
) -> None:
    assert worker.stdin is not None
    assert worker.stdout is not None
    assert json.loads(worker.stdout.readline())["ready"] is True
    lasting = [{"role": "user", "content": "Where?"}]

    def say(**words: Any) -> None:
        assert worker.stdin is not None
        worker.stdin.write(json.dumps(words) + "\n")
        worker.stdin.flush()

    def hear(number: str) -> tuple[list[dict[str, Any]], set[str]]:
        """Up to the end of one, and whose words came before it."""
        assert worker.stdout is not None
        own, others = [], set()
        while True:
            line = json.loads(worker.stdout.readline())
            if line["id"] != number:
                others.add(line["id"])
                continue
            own.append(line)
            if not line.keys().isdisjoint(("done", "cancelled", "error")):
                return own, others

    # With this seed, the answer is as long as its limit.
    say(id="long", messages=lasting, max_tokens=480, temperature=2, seed=34)
    say(id="short", messages=ASKED, max_tokens=4)
    said, others = hear("short")
    say(cancel="long")
    say(cancel="nobody")
    lines, _ = hear("long")
    assert others == {"long"}
    assert "".join(line.get("delta", "") for line in said) == generated(None, 4)
    assert lines[-1] == {"id": "long", "cancelled": True}
    output, _ = worker.communicate(timeout=60)
    assert output == ""


def test_an_answer_that_is_left_in_the_middle_does_not_speak_into_the_next_one() -> None:
    answers = Answers("tiny", model="")
    lasting = {"messages": [{"role": "user", "content": "Where?"}], "max_tokens": 480}
    for _ in range(2):
        pieces = answers.ask({**lasting, "temperature": 2, "seed": 34})
        next(pieces)
        pieces.close()  # type: ignore[attr-defined]
    assert "".join(answers.ask({"messages": ASKED, "max_tokens": 4})) == generated(None, 4)
    assert answers.last["usage"]["completion_tokens"] == 4
    answers.close()
