"""Phi-3-small's sparse attention by blocks, beside the masked square and the plain causal kernel.

    python benchmarks/sparse_attention.py [--write benchmarks/README.md]

One layer of 32 heads in 8 groups, 128 features each, in fp32 on one thread; each case in a process of its
own, so that its peak of memory is its own. CPU time, because the machine may be shared.
"""

from __future__ import annotations

import datetime as dt
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import report
import torch

from local_runner.models import block_sparse

HEADING = "## Sparse attention, beside the square"
HEADS, GROUPS, SIZE = 32, 8, 128
PATTERN = block_sparse.Pattern(block=64, near=16, stride=8, heads=HEADS)
LENGTHS = (2048, 4096, 8192)
LONGEST_SQUARE = 4096
"""Beyond, its masks and scores would not fit into a small machine."""
WAYS = ("blocks", "square", "causal")


def way(name: str, query: Any, key: Any, value: Any) -> Callable[[], Any]:
    """How it is done: ours, with a mask over the square, or with no pattern at all."""
    if name == "blocks":
        return lambda: block_sparse.attend(query, key, value, pattern=PATTERN, scale=1 / SIZE)
    mask = None
    if name == "square":
        at, key_at = torch.arange(key.shape[2])[:, None], torch.arange(key.shape[2])
        near = at // PATTERN.block - key_at // PATTERN.block < PATTERN.near
        far = (
            key_at // PATTERN.block + torch.arange(HEADS)[:, None, None] + 1
        ) % PATTERN.stride == 0
        mask = (key_at <= at) & (near | far)
    return lambda: torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=1 / SIZE, enable_gqa=True
    )


def measure(name: str, length: int) -> None:
    """Prints the seconds forward, the seconds backward, and MiB beyond what stood before."""
    torch.set_num_threads(1)
    dice = torch.Generator().manual_seed(0)
    given = [
        torch.randn(1, heads, length, SIZE, generator=dice).requires_grad_()
        for heads in (HEADS, GROUPS, GROUPS)
    ]
    before = peak()
    start = time.process_time()
    out = way(name, *given)()
    middle = time.process_time()
    out.sum().backward()
    end = time.process_time()
    print(middle - start, end - middle, peak() - before)


def peak() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def case(name: str, length: int) -> str:
    """One cell of the table."""
    if name == "square" and length > LONGEST_SQUARE:
        return "not run"
    words = [sys.executable, __file__, "--case", name, str(length)]
    said = subprocess.run(words, check=True, capture_output=True).stdout
    forward, backward, memory = map(float, said.split())
    return f"{forward:.1f} + {backward:.1f} s, {memory:,.0f} MiB"


def run() -> str:
    """The table, and how it came about."""
    lines = [
        "CPU seconds of one layer, forward + backward, and its peak of memory beyond the inputs.",
        "",
        "| tokens | blocks (ours) | the square with a mask | dense causal, PyTorch's kernel |",
        "|---|---|---|---|",
    ]
    for length in LENGTHS:
        cells = [case(name, length) for name in WAYS]
        lines.append(f"| {length:,} | {' | '.join(cells)} |")
    lines += [
        "",
        "The square gives the same numbers as the blocks. The causal kernel does not: it is what a dense "
        "layer costs, and knows of no pattern. Up to 1,024 tokens sparse layers are dense and take it.",
        "",
        f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}, one thread of {os.cpu_count()} cores, shared, load before "
        f"{os.getloadavg()[0]:.1f}; PyTorch {torch.__version__}, fp32, one run each. Not run on a GPU.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument(
        "--case", nargs=2, metavar=("WAY", "TOKENS"), help="measure one, and print it"
    )
    given = parser.parse_args()
    if given.case:
        measure(given.case[0], int(given.case[1]))
        return
    text = run()
    report.tell(text, HEADING, given.write)


if __name__ == "__main__":
    main()
