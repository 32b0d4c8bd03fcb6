"""`maas mock proxy`: starts it; and where it is, for `env` and `stop`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from local_runner.mock_server.cli.line import Line, is_there, wait_until_gone
from local_runner.mock_server.control import proxy
from local_runner.mock_server.engine import tail
from maas_client.errors import MaasError

_START_SECONDS = 30


def add_verb(verbs: Any) -> None:
    """Add the verb to those of `maas mock`."""
    made = verbs.add_parser(
        "proxy", help="the public cloud's names lead to the mock; no other host"
    )
    made.set_defaults(run=_proxy)
    made.add_argument("--port", type=int, default=0)
    made.add_argument("--detach", action="store_true", help="return once it serves")


def _proxy(options: argparse.Namespace) -> int:
    line = Line(options.home)
    home = line.home
    if not line.state["url"].startswith("https:"):
        raise MaasError(
            "this mock speaks plain HTTP, and public names need TLS",
            hint="Start it without --plain.",
        )
    if (running := _proxy_state(home)) is not None:
        raise MaasError(
            f"a proxy already serves at {running['url']}", hint="`maas mock stop` stops it, too."
        )
    if not options.detach:
        proxy.run(home, "127.0.0.1", options.port, lambda words: print(words, flush=True))
        return 0
    log = home / "proxy.log"
    words = ("mock", "--home", str(home), "proxy", "--port", str(options.port))
    with log.open("ab") as stream:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "local_runner", *words],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    end = time.monotonic() + _START_SECONDS
    while (state := _proxy_state(home)) is None:
        if child.poll() is not None or time.monotonic() > end:
            raise MaasError(f"the proxy did not start: {tail(log)}")
        time.sleep(0.05)
    print(f'the proxy to the mock is at {state["url"]}; eval "$(maas mock env --recipe C)"')
    return 0


def proxy_url(home: Path) -> str:
    """Where the proxy of a home serves.

    Raises:
        MaasError: none does.
    """
    state = _proxy_state(home.resolve())
    if state is None:
        raise MaasError("no proxy serves", hint="`maas mock proxy --detach` starts one.")
    return str(state["url"])


def stop_proxy(home: Path) -> None:
    """Stop the proxy of a home, if one serves."""
    state = _proxy_state(home)
    if state is not None:
        os.kill(state["pid"], signal.SIGTERM)
        wait_until_gone(state["pid"], _START_SECONDS)


def _proxy_state(home: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads((home / "proxy.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if is_there(state["pid"]) else None
