"""The live view of a running job: status, step, losses, tokens per second, time left."""

from __future__ import annotations

import time

from rich.box import ROUNDED
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from maas_client.cli.progress import Progress, clock, sparkline
from maas_client.jobs import Event, Job, JobStatus

_COLOURS = {
    JobStatus.QUEUED: "cyan",
    JobStatus.RUNNING: "blue",
    JobStatus.PAUSED: "yellow",
    JobStatus.SUCCEEDED: "green",
    JobStatus.FAILED: "red",
    JobStatus.CANCELLED: "yellow",
}
_WIDEST = 110


class View:
    """The view on a terminal. Events go in; what scrolls by is printed above the panel."""

    def __init__(self, job: Job, console: Console | None = None) -> None:
        self.progress = Progress(job)
        self._trouble = ""
        self._console = console or Console()
        self._live = Live(
            console=self._console, get_renderable=self._panel, refresh_per_second=4, transient=False
        )

    def start(self) -> None:
        self._live.start()

    def stop(self) -> None:
        self._live.stop()

    def event(self, event: Event) -> None:
        self.progress.take(event)
        if event.kind == "log":
            self._console.print(Text(event.message, style="dim"), highlight=False)

    def trouble(self, text: str) -> None:
        """What is wrong with the connection; empty when nothing is."""
        self._trouble = text
        self._live.refresh()

    def _panel(self) -> Panel:
        width = min(self._console.width, _WIDEST)
        seen, inner = self.progress, width - 4
        colour = _COLOURS[seen.status]
        title = Text.assemble((f" {seen.job.id} ", "bold"), (f"on {seen.job.target} ", "dim"))
        state = Text.assemble((f" {seen.status} ", f"bold {colour}"))
        if seen.job.simulated:
            state.append("simulated ", "yellow")
        rows: list[RenderableType] = [self._bar(inner), self._losses(inner), self._times(inner)]
        if self._trouble:
            rows.append(Text(self._trouble, style="yellow", overflow="ellipsis", no_wrap=True))
        return Panel(
            Group(*rows),
            box=ROUNDED,
            width=width,
            title=title,
            title_align="left",
            subtitle=state,
            subtitle_align="right",
            border_style="yellow" if self._trouble else colour,
        )

    def _bar(self, width: int) -> Table:
        seen = self.progress
        count = f"step {seen.step:,}/{seen.total:,}" if seen.total else "no step yet"
        share = f"{100 * seen.step // seen.total} %" if seen.total else ""
        row = Table.grid(padding=(0, 2), expand=True)
        row.add_column(ratio=1)
        row.add_column(justify="right", no_wrap=True)
        row.add_column(justify="right", no_wrap=True, min_width=5)
        bar = ProgressBar(
            total=seen.total,
            completed=seen.step,
            pulse=seen.total is None and not seen.status.is_terminal,
            width=width - len(count) - 9,
        )
        row.add_row(bar, count, share)
        return row

    def _losses(self, width: int) -> Table:
        seen = self.progress
        rows = Table.grid(padding=(0, 2))
        for name, values, colour in (
            ("loss", seen.losses, "blue"),
            ("validation", seen.eval_losses, "magenta"),
        ):
            if not values:
                continue
            first = f"from {values[0]:.4f}" if len(values) > 1 else ""
            line = sparkline(values, width - 38)
            rows.add_row(
                Text(f"{name:10}", "dim"),
                Text(f"{values[-1]:8.4f}", "bold"),
                Text(line, colour),
                Text(first, "dim"),
            )
        return rows

    def _times(self, width: int) -> Text:
        seen, now = self.progress, time.time()
        left, elapsed = seen.seconds_left(now), seen.elapsed(now)
        parts = [
            ("speed", f"{seen.tokens_per_second:,.0f} tokens/s" if seen.tokens_per_second else ""),
            ("elapsed", clock(elapsed) if elapsed is not None else ""),
            ("left", clock(left) if left is not None else ""),
        ]
        text = Text(no_wrap=True, overflow="ellipsis")
        for name, value in parts:
            if value:
                text.append(f"{name} ", "dim").append(value).append("   ")
        return text
