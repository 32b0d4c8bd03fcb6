"""`maas mock replay`: a journal played to the mock that runs."""

from __future__ import annotations

import argparse
import http.client
import json
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from local_runner.mock_server.cli.line import Line
from local_runner.mock_server.control import replay
from local_runner.mock_server.names import endpoint

_CONTROL = "/__mock__"


def add_verb(verbs: Any, duration: Any) -> None:
    """Add the verb to those of `maas mock`; `duration` reads one."""
    made = verbs.add_parser("replay", help="play a journal again; 1 where an answer differs")
    made.set_defaults(run=_replay)
    made.add_argument("journal", type=Path)
    made.add_argument("--patience", type=duration, default=30.0, help="for what takes its time")
    made.add_argument("--most", type=int, default=10, help="stop after so many differences")


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
        except (OSError, http.client.HTTPException) as error:
            raise replay.NoAnswerError(str(error)) from error
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
