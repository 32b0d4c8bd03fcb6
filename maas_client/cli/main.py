"""Runs a command line and turns errors into exit codes.

0 done · 1 failed · 2 usage, or a job that is refused · 130 interrupted
"""

from __future__ import annotations

import logging

import typer

from maas_client.cli import render
from maas_client.cli.app import app
from maas_client.errors import MaasError, PlanError, SettingsError, SpecError

# typer brought its own copy of click at some version; BadParameter's ancestor is right in both.
_ClickError: type[Exception] = typer.BadParameter.__mro__[2]

_REFUSED = (SpecError, PlanError, SettingsError)


def run_cli(arguments: list[str]) -> int:
    """Run one command line; returns the exit code."""
    as_json = "--json" in arguments
    # A retry is said by the view, in its words, and not a second time by the library.
    logging.getLogger("stamina").addHandler(logging.NullHandler())
    try:
        code = app(arguments, prog_name="maas", standalone_mode=False)
    except MaasError as error:
        render.error(error, as_json=as_json)
        return 2 if isinstance(error, _REFUSED) else 1
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except _ClickError as error:
        error.show()  # type: ignore[attr-defined]
        return 2
    except BrokenPipeError:
        return render.closed_pipe()
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        render.error(MaasError(f"{place}{error.strerror or error}"), as_json=as_json)
        return 1
    return code if isinstance(code, int) else 0
