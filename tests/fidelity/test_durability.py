"""A server that is killed while many clients are at it loses no job and runs none twice."""

from __future__ import annotations

from pathlib import Path

from tests import soak


def test_jobs_survive_a_server_that_is_killed_again_and_again(tmp_path: Path) -> None:
    """The small one; `make soak` runs 1,000 jobs of 50 clients with five kills."""
    seen = soak.run(tmp_path, jobs=24, clients=8, kills=2)
    assert seen.faults == []
    assert seen.killed == 2
    assert len(seen.accepted) == 24
    assert seen.tries > 0  # the kills were felt
