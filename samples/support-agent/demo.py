"""The main job, end to end, on this machine: plan, submit, train, register, deploy, ask, undeploy.

    make demo

Everything is real but two things. The base model is a stand-in of 135 M parameters, which takes the
place of Phi-3-mini; the service is its offline twin, to which azure-ai-ml talks unmodified. The same
verbs run on a real workspace with another target.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import maas_client as maas
from maas_client.cli import render
from maas_client.cli.progress import Live

HERE = Path(__file__).parent
JOB = HERE / "job.yaml"
SHOWN = "samples/support-agent/job.yaml"
OUT = Path("runs") / "demo"
QUESTIONS = json.loads((HERE / "questions.json").read_text())

console = Console()
spent: dict[str, float] = {}


@contextmanager
def act(title: str, command: str = "") -> Iterator[None]:
    """One act of the journey, timed; `command` is what a person would type for it."""
    console.rule(f"[bold]{title}", align="left")
    if command:
        console.print(f"[dim]$ {command}")
    start = time.monotonic()
    yield
    spent[title] = time.monotonic() - start


def mock(*words: str) -> None:
    """The offline twin, through its command line."""
    subprocess.run([sys.executable, "-m", "local_runner", "mock", *words], check=True)


def demo(base: str) -> None:
    """The journey."""
    with act("The base model answers", f'maas chat --local {base} "…"'):
        before = ask_base(base)
    with act("The offline twin starts", f"maas mock serve --engine train --base {base} --detach"):
        mock("serve", "--engine", "train", "--base", base, "--detach")
    target = maas.open_target("mock")
    try:
        run, after = journey(target, base)
    finally:
        target.close()
        mock("stop")
    report(run, before, after)


def ask_base(base: str) -> list[str]:
    """The questions, before."""
    chat = maas.open_local_chat(base)
    answers = ask_all(chat)
    chat.close()
    return answers


def ask_all(chat: maas.Chat) -> list[str]:
    """The three questions."""
    answers = []
    for question in QUESTIONS:
        answers.append(chat.ask(question, max_tokens=48).text)
        console.print(f"[bold]{question}[/]\n  {answers[-1]}", highlight=False)
    return answers


def journey(target: maas.Target, base: str) -> tuple[maas.RunDir, list[str]]:
    """Plan to undeploy, on any target that hosts models."""
    with act("Plan", f"maas plan {SHOWN} --target mock --base {base}"):
        plan = maas.plan_job(JOB, target, base=base)
        render.plan(plan, as_json=False)
    with act("Submit and follow", f"maas submit {SHOWN} --target mock --wait"):
        job = maas.submit(plan, target)
        console.print(f"submitted as {job.id}")
        with Live(job.get(), as_json=False) as live:
            for event in job.follow(on_line=live.on_line):
                live.event(event)
        render.job(job.get(), as_json=False)
    with act("Download", f"maas jobs download {job.id} --target mock"):
        run = maas.collect(job, OUT / job.id)
        console.print(f"{run.path}")
    model = job.get().output_model or ""
    with act("Deploy", f"maas deploy {model} --target mock"):
        endpoint = maas.deploy(model, target, endpoint="support-agent")
        render.endpoint(endpoint, as_json=False)
        render.billing("mock", as_json=False)
    with act("The tuned model answers", f'maas chat {endpoint.name} "…" --target mock'):
        chat = maas.open_chat(endpoint.name, target)
        after = ask_all(chat)
        chat.close()
    with act("Undeploy", f"maas undeploy {endpoint.name} --target mock"):
        maas.hosting(target).undeploy(endpoint.name)
        console.print("the endpoint is gone, and with it the hourly bill")
    return run, after


def report(run: maas.RunDir, before: list[str], after: list[str]) -> None:
    """What changed, and where the time went."""
    losses = [metric["eval_loss"] for metric in run.metrics() if "eval_loss" in metric]
    console.rule("[bold]Before and after", align="left")
    table = Table("question", "before", "after", box=SIMPLE_HEAD, show_lines=True)
    for row in zip(QUESTIONS, before, after, strict=True):
        table.add_row(*row)
    console.print(table, highlight=False)
    change = (losses[-1] / losses[0] - 1) * 100
    console.print(
        f"held-out loss  before {losses[0]:.3f}  after {losses[-1]:.3f}  ({change:+.1f} %)\n"
        f"measured on {trained_on(run)}",
        highlight=False,
    )
    console.rule("[bold]Where the time went", align="left")
    for title, seconds in spent.items():
        console.print(f"{seconds:6.1f} s  {title}", highlight=False)
    console.print(f"{sum(spent.values()):6.1f} s  in all", highlight=False)


def trained_on(run: maas.RunDir) -> str:
    """What was really trained, in words."""
    status = run.read_status()
    return status.base if status else "unknown"


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--base", default="stand-in", help="stand-in, tiny, a folder or a hub id"
    )
    OUT.mkdir(parents=True, exist_ok=True)
    # A twin of its own: one that is already running for somebody else stays as it is.
    os.environ["MAAS_MOCK_HOME"] = str((OUT / "mock").resolve())
    try:
        demo(arguments.parse_args().base)
    except maas.MaasError as error:
        render.error(error, as_json=False)
        sys.exit(1)
