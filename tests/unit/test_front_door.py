"""What importing the client costs, and what it offers."""

from __future__ import annotations

import subprocess
import sys

import maas_client

HEAVY = ("torch", "azure", "openai", "typer", "rich", "transformers", "peft", "httpx")


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_client_loads_nothing_heavy() -> None:
    assert not modules_after("import maas_client").intersection(HEAVY)


def test_reading_a_job_file_loads_nothing_heavy() -> None:
    statement = "from maas_client import load_job, check, FineTuningJob, open_target"
    assert not modules_after(statement).intersection(HEAVY)


def test_help_loads_no_rich_and_nothing_heavy() -> None:
    statement = "from maas_client.cli.main import run_cli; run_cli(['models', '--help'])"
    loaded = modules_after(statement)
    assert "typer" in loaded
    assert not loaded.intersection(set(HEAVY) - {"typer"})


def test_the_front_door_is_a_written_list_and_each_name_opens() -> None:
    for name in maas_client.__all__:
        assert getattr(maas_client, name).__name__ == name
    assert maas_client.__all__ == sorted(maas_client.__all__)
