"""`maas mock …` while it runs: what is set, faults, time, snapshots, journal, replay, proxy."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from local_runner.mock_server import proxy, replay
from local_runner.mock_server.controls import PROFILES
from local_runner.mock_server.engine import tail
from local_runner.mock_server.line import Line, is_there, wait_until_gone
from local_runner.mock_server.names import endpoint
from maas_client.errors import MaasError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_START_SECONDS = 30
_KINDS = ("status", "lost-request", "lost-reply", "cut", "slow")
_CONTROL = "/__mock__"


def add_verbs(verbs: Any) -> None:
    """Add the verbs to those of `maas mock`."""
    made = verbs.add_parser("set", help="capacity, quota, latency")
    made.set_defaults(run=_set)
    made.add_argument("--capacity", type=int, help="jobs at once; the rest queue")
    made.add_argument("--quota", metavar="jobs=N,endpoints=N,models=N", help="`none` for no end")
    made.add_argument("--latency", help=f"{', '.join(PROFILES)}, or milliseconds")
    _add_fault(verbs)
    made = verbs.add_parser("time", help="what time it is for simulated jobs; faster, or ahead")
    made.set_defaults(run=_time)
    made.add_argument(
        "--scale", type=float, help="3600: an hour passes in a second; 0: time stands"
    )
    made.add_argument("--advance", type=_duration, help="jump ahead: 90s, 30m, 6h, 2d")
    made = verbs.add_parser("snapshot", help="keep the state under a name; without one, list them")
    made.set_defaults(run=_snapshot)
    made.add_argument("name", nargs="?")
    made.add_argument("--drop", action="store_true", help="forget it")
    made = verbs.add_parser("restore", help="go back to a snapshot")
    made.set_defaults(run=_restore)
    made.add_argument("name")
    made = verbs.add_parser("journal", help="every request and answer, without secrets; JSON lines")
    made.set_defaults(run=_journal)
    made.add_argument("--last", type=int, default=20, help="how many")
    made.add_argument("--forget", action="store_true", help="begin anew")
    made = verbs.add_parser("replay", help="play a journal again; 1 where an answer differs")
    made.set_defaults(run=_replay)
    made.add_argument("journal", type=Path)
    made.add_argument("--patience", type=_duration, default=30.0, help="for what takes its time")
    made.add_argument("--most", type=int, default=10, help="stop after so many differences")
    made = verbs.add_parser(
        "proxy", help="the public cloud's names lead to the mock; no other host"
    )
    made.set_defaults(run=_proxy)
    made.add_argument("--port", type=int, default=0)
    made.add_argument("--detach", action="store_true", help="return once it serves")


def _add_fault(verbs: Any) -> None:
    made = verbs.add_parser("fault", help="let something go wrong; without a kind, list what does")
    made.set_defaults(run=_fault)
    made.add_argument("kind", nargs="?", choices=(*_KINDS, "clear"), metavar="KIND",
                      help=f"{', '.join(_KINDS)}; or clear")  # fmt: skip
    made.add_argument("--method", default="")
    made.add_argument("--path", default="", help="a regular expression that the path must hold")
    made.add_argument("--status", type=int, default=503)
    made.add_argument("--code", default="")
    made.add_argument("--header", action="append", default=[], metavar="NAME=VALUE")
    made.add_argument("--seconds", type=float, default=1.0, help="of `slow`")
    made.add_argument("--bytes", type=int, default=10, help="of the body before the `cut`")
    made.add_argument("--rate", type=float, default=1.0, help="share of the matching requests")
    made.add_argument("--skip", type=int, default=0, help="matching requests to let pass first")
    made.add_argument("--times", type=int, help="how often at most")
    made.add_argument("--once", action="store_const", const=1, dest="times")


def _duration(text: str) -> float:
    """A time: 90, 90s, 30m, 6h, 2d."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; 90s, 30m, 6h and 2d are")
    return float(match[1]) * _UNITS[match[2] or "s"]


def _set(options: argparse.Namespace) -> int:
    line = Line(options.home)
    change: dict[str, Any] = {}
    if options.capacity is not None:
        change["capacity"] = options.capacity
    if options.quota is not None:
        change["quota"] = _quota(options.quota)
    if (given := options.latency) is not None:
        is_number = re.fullmatch(r"\d+(\.\d+)?", given)
        change["latency"] = [{"median_ms": float(given)}] if is_number else given
    path = f"{_CONTROL}/controls"
    now = line.ask("PATCH", path, change) if change else line.ask("GET", path)
    print(json.dumps({key: value for key, value in now.items() if key != "faults"}, indent=2))
    return 0


def _quota(text: str) -> dict[str, int]:
    if text == "none":
        return {}
    found = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        if not number.isdigit():
            raise MaasError(
                f"--quota {part!r} is no limit", hint="Write --quota jobs=3,endpoints=1."
            )
        found[name.strip()] = int(number)
    return found


def _fault(options: argparse.Namespace) -> int:
    line, path = Line(options.home), f"{_CONTROL}/controls"
    faults = line.ask("GET", path)["faults"]
    if options.kind == "clear":
        faults = line.ask("PATCH", path, {"faults": []})["faults"]
    elif options.kind is not None:
        pairs = [text.partition("=") for text in options.header]
        keys = (
            "kind",
            "method",
            "path",
            "status",
            "code",
            "seconds",
            "bytes",
            "rate",
            "skip",
            "times",
        )
        new = {key: getattr(options, key) for key in keys}
        new["headers"] = {name: value for name, _, value in pairs}
        faults = line.ask("PATCH", path, {"faults": [*faults, new]})["faults"]
    for fault in faults:
        often = f"{fault['fired']} of {fault['times'] or 'any number of'} times"
        place = f"{fault['method'] or 'any'} {fault['path'] or '/'}"
        what = f"{fault['kind']} {fault['status']}" if fault["kind"] == "status" else fault["kind"]
        print(f"{fault['id']:10} {what:14} {place}  rate {fault['rate']:g}, happened {often}")
    if not faults:
        print("nothing goes wrong")
    return 0


def _time(options: argparse.Namespace) -> int:
    line, path = Line(options.home), f"{_CONTROL}/time"
    if options.scale is None and options.advance is None:
        now = line.ask("GET", path)
    else:
        given = {"scale": options.scale, "advance": options.advance}
        now = line.ask("POST", path, {k: v for k, v in given.items() if v is not None})
    print(f"{now['time']}  ({now['scale']:g} times as fast as real time)")
    return 0


def _snapshot(options: argparse.Namespace) -> int:
    line, path = Line(options.home), f"{_CONTROL}/snapshots"
    if options.name is None:
        print("\n".join(line.ask("GET", path)["value"]) or "no snapshots")
        return 0
    line.ask("DELETE" if options.drop else "PUT", f"{path}/{options.name}")
    print(f"snapshot {options.name} is {'forgotten' if options.drop else 'kept'}")
    return 0


def _restore(options: argparse.Namespace) -> int:
    Line(options.home).ask("POST", f"{_CONTROL}/snapshots/{options.name}/restore")
    print(f"everything is as it was at {options.name}")
    return 0


def _journal(options: argparse.Namespace) -> int:
    line, path = Line(options.home), f"{_CONTROL}/journal"
    if options.forget:
        line.ask("DELETE", path)
        print("the journal begins anew")
        return 0
    sys.stdout.write(line.ask_raw("GET", f"{path}?$top={options.last}").decode())
    return 0


def _replay(options: argparse.Namespace) -> int:
    line, entries = Line(options.home), replay.read(options.journal)
    player = player_of(line, options.patience)
    differ = 0
    for difference in player.play(entries):
        print(difference, flush=True)
        differ += 1
        if differ == options.most:
            print("and perhaps more: --most says how many to show")
            return 1
    print(f"{len(entries)} entries, {player.left_out} left out, {differ} differ")
    return 1 if differ else 0


def player_of(line: Line, patience: float) -> replay.Replay:
    """A replay against a running mock, with the credentials that its home has."""
    parts = urlsplit(line.state["url"])
    host = f"{parts.hostname}:{parts.port}"

    def send(
        method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, Mapping[str, str], bytes]:
        made = (
            http.client.HTTPConnection(host, timeout=120)
            if line.context is None
            else http.client.HTTPSConnection(host, timeout=120, context=line.context)
        )
        try:
            made.request(method, target, body=body or None, headers=dict(headers))
            answer = made.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            made.close()

    bearer = f"Bearer {_token(line)}"

    def login(entry: replay.Entry, path: str) -> Mapping[str, str]:
        if path.startswith(f"{_CONTROL}/"):
            return {"authorization": f"Bearer {line.secret}"}
        if not replay.wears_secret(entry):
            return {}
        if entry["status"] == 401:
            return {"authorization": "Bearer wrong"}
        if (place := endpoint(entry["host"], path)) is not None:
            room = {"serverless": "serverlessEndpoints", "online": "onlineEndpoints"}[place[0]]
            keys = f"{_workspace(line)}/{room}/{place[1]}/listKeys"
            _, _, found = send("POST", keys, {"authorization": bearer}, b"")
            return {"authorization": f"Bearer {json.loads(found)['primaryKey']}"}
        return {"authorization": bearer}

    return replay.Replay(send, host, login, patience)


def _workspace(line: Line) -> str:
    state = line.state
    return (
        f"/subscriptions/{state['subscription_id']}/resourceGroups/{state['resource_group']}"
        f"/providers/Microsoft.MachineLearningServices/workspaces/{state['workspace']}"
    )


def _token(line: Line) -> str:
    request = urllib.request.Request(  # noqa: S310 - our own address
        f"{line.state['identity_endpoint']}?resource=https://management.azure.com/",
        headers={"X-IDENTITY-HEADER": line.state["identity_header"]},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        return str(json.loads(answer.read())["access_token"])


def _proxy(options: argparse.Namespace) -> int:
    home = Line(options.home).home
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
