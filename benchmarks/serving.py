"""Answers of the stand-in: our batch, and transformers' `generate`, side by side in one process.

    python benchmarks/serving.py [--base stand-in] [--write benchmarks/README.md]

The same weights, the same eight prompts, greedy, the same number of tokens. Rounds take turns.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from uploads import write_section

from local_runner import adapters
from local_runner.generate import Answerer, Ask
from local_runner.models import base as bases
from local_runner.speech import Ending

HEADING = "## Answers, beside transformers' generate"
ROUNDS = 3
TOKENS = 48
QUESTIONS = (
    "What is a lighthouse?",
    "Name three rivers of Europe, and say where each of them ends.",
    "How is bread made? Tell it step by step, for somebody who has never been in a kitchen.",
    "Write a short letter to a neighbour who has lent you a ladder.",
    "Why is the sky blue?",
    "A train leaves at nine and arrives at noon; it has gone 240 kilometres. How fast was it, and why?",
    "Explain to a child what an adapter of a language model is.",
    "List what one packs for a week in the mountains in autumn, and what each thing is for.",
)

Ids = list[list[int]]
Way = Callable[[Sequence[Ask]], Ids]


class Peer:
    """transformers as its user has it: the model, and peft where an adapter is asked for."""

    def __init__(self, base: bases.Base, answerer: Answerer) -> None:
        self._model: Any = bases.load(base).eval()
        self._tokenizer = answerer.tokenizer
        self._pad = answerer.tokenizer.eos_id

    def adapt(self, adapter: Path) -> None:
        self._model = adapters.open_on(self._model, adapter).eval()

    def one_by_one(self, asks: Sequence[Ask]) -> Ids:
        """One request after another."""
        return [self._generate([self._tokenizer.prompt(ask.messages)], ask)[0] for ask in asks]

    def padded(self, asks: Sequence[Ask]) -> Ids:
        """All of them as one batch, padded on the left."""
        return self._generate([self._tokenizer.prompt(ask.messages) for ask in asks], asks[0])

    def _generate(self, prompts: Ids, ask: Ask) -> Ids:
        longest = max(map(len, prompts))
        rows = [[self._pad] * (longest - len(ids)) + ids for ids in prompts]
        mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
        made = self._model.generate(
            input_ids=torch.tensor(rows),
            attention_mask=torch.tensor(mask),
            max_new_tokens=ask.max_tokens,
            min_new_tokens=ask.max_tokens,
            do_sample=False,
            pad_token_id=self._pad,
        )
        return [list(map(int, row)) for row in made[:, longest:]]


def ours(answerer: Answerer) -> Way:
    """All requests at once, through the batch."""

    def run(asks: Sequence[Ask]) -> Ids:
        answers = [answerer.begin(ask) for ask in asks]
        while answerer.running:
            answerer.step()
        for answer in answers:
            ending = answer.pieces[-1]
            assert isinstance(ending, Ending)  # noqa: S101 - a benchmark of something else otherwise
        return [answer.row.ids[-answer.speech.made :] for answer in answers]

    return run


def measure(ways: dict[str, Way], asks: Sequence[Ask]) -> tuple[dict[str, float], dict[str, Ids]]:
    """Median seconds by way, and what each said; the ways take turns."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    said: dict[str, Ids] = {}
    for way in ways.values():
        way([replace(ask, max_tokens=2) for ask in asks])
    for number in range(ROUNDS):
        order = list(ways)[:: 1 if number % 2 == 0 else -1]
        for name in order:
            began = time.perf_counter()
            said[name] = ways[name](asks)
            took[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in took.items()}, said
