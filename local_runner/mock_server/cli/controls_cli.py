"""`maas mock …` while it runs: what is set, faults, time, snapshots, journal."""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import Any

from local_runner.mock_server.cli.line import Line
from local_runner.mock_server.control.controls import PROFILES
from maas_client.errors import MaasError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_KINDS = ("status", "lost-request", "lost-reply", "cut", "slow")
_CONTROL = "/__mock__"


def add_verbs(verbs: Any) -> None:
    """Add the verbs to those of `maas mock`."""
    made = verbs.add_parser("set", help="capacity, quota, latency, OpenAI's files")
    made.set_defaults(run=_set)
    made.add_argument("--capacity", type=int, help="jobs at once; the rest queue")
    made.add_argument("--quota", metavar="jobs=N,endpoints=N,models=N", help="`none` for no end")
    made.add_argument("--latency", help=f"{', '.join(PROFILES)}, or milliseconds")
    made.add_argument("--weights", choices=("on", "off"),
                      help="a job's adapter in its result files on OpenAI's wire (no service)")  # fmt: skip
    made.add_argument("--file-bytes", type=int, help="how large a file of rows may be on that wire")
    _add_fault(verbs)
    made = verbs.add_parser("time", help="what time it is for simulated jobs; faster, or ahead")
    made.set_defaults(run=_time)
    made.add_argument(
        "--scale", type=float, help="3600: an hour passes in a second; 0: time stands"
    )
    made.add_argument("--advance", type=duration, help="jump ahead: 90s, 30m, 6h, 2d")
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


def duration(text: str) -> float:
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
    if options.weights is not None:
        change["weights"] = options.weights == "on"
    if options.file_bytes is not None:
        change["file_bytes"] = options.file_bytes
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
