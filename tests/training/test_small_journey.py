"""A job on Phi-3-small in this process, on the tiny random one: train, go on, merge, evaluate, answer."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from local_runner import adapters
from local_runner.data import ChatTokenizer, load_examples
from local_runner.evaluate import mean_loss
from local_runner.generate import Answerer, Ask
from local_runner.models import base as bases
from local_runner.models import tiny_small
from local_runner.train import train
from maas_client.jobs import Event, JobStatus
from maas_client.spec.rundir import RunDir

MakeRun = Callable[..., RunDir]
BASE = "tiny-phi-3-small"
LONG = "Where is the tap? " * 20
KNOBS = {
    "base": BASE,
    "max_steps": 12,
    "per_device_train_batch_size": 2,
    "learning_rate": 0.01,
    "lora_dropout": 0.05,
    "save_strategy": "steps",
    "save_steps": 4,
    "merge_lora_weights": True,
}


def conversation(question: str) -> dict[str, Any]:
    answer = {"role": "assistant", "content": "Left of the red door."}
    return {"messages": [{"role": "user", "content": question}, answer]}


ROWS = [conversation(question) for question in (LONG, "Where?", LONG[7:], LONG * 2)]


def test_a_job_on_phi_3_small_learns_and_an_interrupted_one_ends_with_the_same_bytes(
    make_run: MakeRun,
) -> None:
    def interrupt(event: Event) -> None:
        # once: the second signal would end this process
        if event.data.get("step") == 5 and "loss" in event.data:
            signal.raise_signal(signal.SIGINT)

    whole, halved = (make_run(name, rows=ROWS, held_out=ROWS, **KNOBS) for name in ("a", "b"))
    assert train(whole).status is JobStatus.SUCCEEDED
    losses = [metric["eval_loss"] for metric in whole.metrics() if "eval_loss" in metric]
    assert losses[-1] < 0.7 * losses[0]
    assert train(halved, on_event=interrupt).status is JobStatus.CANCELLED
    assert train(halved).status is JobStatus.SUCCEEDED
    made = [(run.adapter / adapters.WEIGHTS).read_bytes() for run in (whole, halved)]
    assert made[0] == made[1]

    tokenizer = ChatTokenizer(tiny_small.install())
    file = Path(whole.path.parent / "a-train.jsonl")
    rows = load_examples(tokenizer, file, max_length=2048)
    assert max(len(row.ids) for row in rows) > 64 * 8, "no row is long enough to be sparse"
    merged = bases.resolve(str(whole.merged), model="")
    opened = adapters.open_on(bases.load(bases.resolve(BASE, model="")), whole.adapter)
    found = [mean_loss(model, rows, pad_id=257) for model in (bases.load(merged), opened)]
    assert abs(found[0] - found[1]) < 1e-4

    answerer = Answerer(bases.resolve(BASE, model=""))
    answer = answerer.begin(Ask(ROWS[0]["messages"][:1], adapter=whole.adapter, max_tokens=12))
    prompt = torch.tensor([answer.row.ids])
    while not answer.over:
        answerer.step()
    out = opened.eval().generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False
    )
    assert answer.row.ids == out[0].tolist()


def test_small_s_template_and_tokens_are_the_published_ones() -> None:
    tokenizer = ChatTokenizer(tiny_small.install())
    ids = tokenizer.prompt([{"role": "user", "content": "Hi"}])
    newline = tokenizer.raw.token_to_id("Ċ")
    assert [ids[i] for i in (0, 1, 2, 5, 6, 7, 8)] == [
        257,
        262,
        newline,
        266,
        newline,
        263,
        newline,
    ]
    config = bases.read_config(tiny_small.install())
    assert config["dummy_token_indices"] == [256, 258, 259, 260, 264, 265, *range(267, 272)]
