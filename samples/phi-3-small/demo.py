"""Phi-3-small's journey on this machine: plan, train, evaluate, ask, and the twin's managed compute.

    make demo MODEL=phi-3-small

The model is a tiny random Phi-3-small, because the real one has 7.4 billion weights: every part of the
architecture is there, and nothing is known. What it says is noise; that its loss falls is not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

import maas_client as maas
from maas_client.cli import render
from maas_client.cli.progress import Live

HERE = Path(__file__).parent
JOB = HERE / "job.yaml"
SHOWN = "samples/phi-3-small/job.yaml"
HELD_OUT = HERE.parent / "support-agent" / "heldout.jsonl"
OUT = Path("runs") / "demo-phi-3-small"
QUESTION = "What does the Wren cost?"

console = Console()


def rule(title: str, command: str) -> None:
    """Opens an act; `command` is what a person would type for it."""
    console.rule(f"[bold]{title}", align="left")
    console.print(f"[dim]$ {command}")


def demo(base: str) -> None:
    """The journey."""
    start = time.monotonic()
    local = maas.open_target("local")
    rule("Plan", f"maas plan {SHOWN} --base {base}")
    plan = maas.plan_job(JOB, local, base=base)
    render.plan(plan, as_json=False)
    rule("Train here", f"maas run {SHOWN} --base {base}")
    here = follow(maas.submit(plan, local, new=True))
    rule("Evaluate", f"maas evaluate {here.path} --data {HELD_OUT.name}")
    found = maas.evaluate(here.path, HELD_OUT)
    before, after = (result["loss"] for result in found["results"])
    console.print(f"held-out loss of {found['rows']} rows  before {before:.3f}  after {after:.3f}")
    rule("Ask", f'maas chat --local {here.path} "{QUESTION}"')
    ask(base, "before")
    ask(str(here.path), "after")
    there = on_the_twin(base)
    console.rule("[bold]What came of it", align="left")
    same = weights(here) == weights(there)
    console.print(
        f"held-out loss  before {before:.3f}  after {after:.3f}  ({(after / before - 1) * 100:+.1f} %)\n"
        f"trained here and on the twin: {'the same adapter, byte for byte' if same else 'adapters differ'}\n"
        f"measured on {plan.base.label if plan.base else 'unknown'}: its answers are noise\n"
        f"{time.monotonic() - start:.1f} s in all",
        highlight=False,
    )
    if not same:
        raise maas.MaasError("the twin's adapter is not that of the local run")


def on_the_twin(base: str) -> maas.RunDir:
    """The same file as a job of the service, which tunes this model on managed compute only."""
    rule("The twin", f"maas mock serve --engine train --base {base} --detach")
    mock("serve", "--engine", "train", "--base", base, "--detach")
    target = maas.open_target("mock")
    try:
        rule("Managed compute", f"maas submit {SHOWN} --target mock --wait")
        return follow(maas.submit(maas.plan_job(JOB, target, base=base), target), OUT)
    finally:
        target.close()
        mock("stop")


def follow(job: maas.JobHandle, dest: Path | None = None) -> maas.RunDir:
    """A job to its end, shown while it goes on."""
    with Live(job.get(), as_json=False) as live:
        for event in job.follow(on_line=live.on_line):
            live.event(event)
    return maas.collect(job, dest / job.id if dest else None)


def ask(what: str, when: str) -> None:
    """One question, to a base or to a run."""
    chat = maas.open_local_chat(what)
    answer = chat.ask(QUESTION, max_tokens=24).text
    chat.close()
    console.print(f"  {when}: {answer!r}", highlight=False, markup=False)


def weights(run: maas.RunDir) -> bytes:
    """The adapter's."""
    return (run.adapter / "adapter_model.safetensors").read_bytes()


def mock(*words: str) -> None:
    """The offline twin, through its command line."""
    subprocess.run([sys.executable, "-m", "local_runner", "mock", *words], check=True)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--base", default="tiny-phi-3-small", help="a Phi-3-small")
    OUT.mkdir(parents=True, exist_ok=True)
    # A twin of its own: one that is already running for somebody else stays as it is.
    os.environ["MAAS_MOCK_HOME"] = str((OUT / "mock").resolve())
    try:
        demo(arguments.parse_args().base)
    except maas.MaasError as error:
        render.error(error, as_json=False)
        sys.exit(1)
