"""The sample, trained for real on the stand-in: how far the held-out loss falls, and how far by chance.

The control is the same job with its answers dealt out anew among the questions: it learns the manner,
and cannot learn which answer belongs to which question.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from maas_client import flow
from maas_client.handle import JobHandle
from maas_client.jobs import JobStatus
from maas_client.settings import LocalSettings
from maas_client.spec.dataset import check
from maas_client.spec.rundir import RunDir, read_json
from maas_client.targets import runner
from maas_client.targets.local import LocalTarget

pytestmark = [pytest.mark.stand_in, pytest.mark.timeout(900)]

STEPS = 84
"""Half of the sample's: enough to tell it from chance in half the time. Its README has the whole."""
SAMPLE = Path(__file__).parents[2] / "samples" / "support-agent"


def shuffled(source: Path, target: Path) -> None:
    """The same questions, each with another row's answer."""
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    answers = [[m["content"] for m in row["messages"] if m["role"] == "assistant"] for row in rows]
    order = list(range(len(rows)))
    dice = random.Random(7)  # noqa: S311 - not for secrets
    dice.shuffle(order)
    fixed = [place for place, source_row in enumerate(order) if place == source_row]
    for place in fixed:
        other = (place + 1) % len(order)
        order[place], order[other] = order[other], order[place]
    for row, place in zip(rows, order, strict=True):
        dealt = iter(answers[place])
        for message in row["messages"]:
            if message["role"] == "assistant":
                message["content"] = next(dealt, answers[place][-1])
    target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RunDir]]:
    """The sample and its control, trained at the same time with one thread each."""
    folder = tmp_path_factory.mktemp("support-agent")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.chdir(folder)
        target = LocalTarget(LocalSettings())
        handles: dict[str, JobHandle] = {}
        for name in ("real", "control"):
            shutil.copytree(SAMPLE, folder / name)
            if name == "control":
                shuffled(SAMPLE / "train.jsonl", folder / name / "train.jsonl")
            job = folder / name / "job.yaml"
            job.write_text(
                job.read_text().replace('seed: "42"', f'seed: "42"\n  max_steps: "{STEPS}"')
            )
            plan = flow.plan_job(job, target, base="stand-in", name=name)
            assert any("stand-in" in warning for warning in plan.warnings)
            handles[name] = flow.submit(plan, target)
        ended = {name: handle.wait() for name, handle in handles.items()}
        assert {name: job.status for name, job in ended.items()} == dict.fromkeys(
            handles, JobStatus.SUCCEEDED
        )
        assert all("stand-in" in job.base for job in ended.values())
        yield {name: RunDir(target.path(name)) for name in handles}


def losses(run: RunDir) -> list[float]:
    return [metric["eval_loss"] for metric in run.metrics() if "eval_loss" in metric]


def test_held_out_loss_falls_by_a_quarter_and_clearly_more_than_by_chance(
    runs: dict[str, RunDir],
) -> None:
    before, after = losses(runs["real"])[0], losses(runs["real"])[-1]
    chance = losses(runs["control"])[-1]
    assert losses(runs["control"])[0] == pytest.approx(
        before, rel=1e-6
    )  # the same rows, the same code
    assert after <= 0.75 * before
    # The control learns the manner, which is in every answer; what belongs to the question it cannot.
    assert chance - after >= 0.15 * before


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)  # peft asks the old name
def test_the_adapter_loads_in_plain_peft_and_gives_the_same_loss(runs: dict[str, RunDir]) -> None:
    torch = pytest.importorskip("torch")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from maas_client.spec.home import stand_in_home

    tokenizer = AutoTokenizer.from_pretrained(stand_in_home())
    base = AutoModelForCausalLM.from_pretrained(stand_in_home(), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, runs["real"].adapter).eval()
    total, count = 0.0, 0
    for line in (SAMPLE / "heldout.jsonl").read_text().splitlines():
        messages = json.loads(line)["messages"]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        spans = []
        for place, message in enumerate(messages):
            if message["role"] == "assistant":
                before = messages[:place]
                lead = tokenizer.apply_chat_template(
                    before, tokenize=False, add_generation_prompt=True
                )
                spans.append((len(lead), len(lead) + len(message["content"]) + len("<|im_end|>")))
        coded = tokenizer(
            text, return_offsets_mapping=True, add_special_tokens=False, return_tensors="pt"
        )
        labels = coded["input_ids"].clone()
        for place, (start, stop) in enumerate(coded["offset_mapping"][0].tolist()):
            if not any(first <= start and stop <= last for first, last in spans):
                labels[0, place] = -100
        with torch.no_grad():
            loss = model(input_ids=coded["input_ids"], labels=labels).loss
        tokens = int((labels[:, 1:] != -100).sum())
        total, count = total + loss.item() * tokens, count + tokens
    assert total / count == pytest.approx(losses(runs["real"])[-1], abs=1e-4)


def test_what_ran_on_the_stand_in_says_so_in_every_record(runs: dict[str, RunDir]) -> None:
    run = runs["real"]
    status = run.read_status()
    assert status is not None
    assert "stand-in" in status.base
    assert read_json(run.plan_file)["base"]["stand_in"] is True
    assert read_json(run.manifest_file)["base"]["stand_in"] is True
    assert read_json(run.adapter / "adapter_config.json")["base_model_name_or_path"].startswith(
        "stand-in"
    )
    assert "stand-in" in read_json(run.plan_file)["tokens"]["counted_by"]


def test_rows_average_at_most_sixty_tokens_with_all_that_the_template_adds() -> None:
    for name in ("train.jsonl", "heldout.jsonl"):
        file = SAMPLE / name
        _, tokens, _ = runner.count_tokens(
            "stand-in", model="Phi-3-mini-4k-instruct", task="chat_completion", data=file
        )
        assert tokens.total / check(file, "chat_completion").rows <= 60, name
