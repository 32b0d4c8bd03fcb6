"""A service of OpenAI's wire that lives in this process: one function from request to response."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import httpx

from maas_client.plan import DataPlan, Plan, make_plan
from maas_client.settings import FoundrySettings
from maas_client.spec.dataset import check
from maas_client.spec.loading import load_job
from maas_client.targets.foundry import FoundryTarget
from maas_client.transport import Transport

KEY = "key-that-nobody-may-see"
FOUNDRY = FoundrySettings("foundry", "https://team.openai.azure.com", api_key=KEY)
ARM = FoundrySettings(
    "foundry",
    "https://team.openai.azure.com",
    api_key=KEY,
    subscription_id="sub",
    resource_group="group",
    account="team",
)
CSV = (
    b"step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n"
    b"1,2.5,0.4,,\n2,1.5,0.6,1.75,0.5\n"
)

Answer = Callable[[httpx.Request], httpx.Response | None]


@dataclass
class FakeService:
    """What it has, what was asked of it, and what goes wrong."""

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    content: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, dict[str, Any]] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    deployments: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    faults: list[tuple[str, Answer]] = field(default_factory=list)
    """A part of `METHOD /path`, and what to do once instead; None goes on as usual, once more."""
    has_uploads: bool = True
    most: int = 2
    """Entries of a page."""
    guard: threading.RLock = field(default_factory=threading.RLock)

    def line(self) -> Transport:
        """A line to it."""
        return Transport(
            FOUNDRY.base_url,
            headers={"api-key": KEY},
            transport=httpx.MockTransport(self.answer),
        )

    def target(self, settings: FoundrySettings = FOUNDRY) -> FoundryTarget:
        arm = Transport("https://management.azure.com", transport=httpx.MockTransport(self.answer))
        return FoundryTarget(settings, line=self.line(), arm=arm)

    def count(self, words: str) -> int:
        """How often it was asked for that."""
        return sum(re.search(words, f"{method} {path}") is not None for method, path in self.asked)

    def answer(self, request: httpx.Request) -> httpx.Response:
        request.read()
        with self.guard:
            path = request.url.path.removeprefix("/openai/v1")
            self.asked.append((request.method, path))
            for number, (words, fault) in enumerate(self.faults):
                if words in f"{request.method} {path}":
                    del self.faults[number]
                    if (given := fault(request)) is not None:
                        return given
                    break
            for pattern, door in _DOORS:
                if (found := re.fullmatch(pattern, f"{request.method} {path}")) is not None:
                    return door(self, request, *found.groups())
        return refusal(404, f"no door at {path}")


def planned(file: Path, target: FoundryTarget) -> Plan:
    """The plan of a job file, without the child process that counts tokens."""
    job = load_job(file)
    given = job.training_data
    path = given.path if given.is_remote else str(given.local_path(file.parent))
    report = None if given.is_remote else check(path, job.task)
    return make_plan(job, target.limits(job), training=DataPlan(path, report))


def refusal(status: int, message: str, code: str = "", **headers: str) -> httpx.Response:
    body = {"error": {"message": message, "code": code}}
    return httpx.Response(status, json=body, headers={"x-request-id": "req-1"} | headers)


def lose(service: FakeService) -> Answer:
    """Does what is asked, and loses the answer."""

    def answer(request: httpx.Request) -> httpx.Response:
        service.answer(request)
        service.asked.pop()
        raise httpx.ReadTimeout("no answer came", request=request)

    return answer


def _form(request: httpx.Request) -> tuple[dict[str, str], str, bytes]:
    """Fields, file name and content."""
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    message = BytesParser().parsebytes(head + request.content)
    fields, name, content = {}, "", b""
    for part in message.get_payload():  # type: ignore[union-attr]
        assert not isinstance(part, str)
        words = part.get_payload(decode=True)
        assert isinstance(words, bytes)
        if part.get_filename():
            name, content = part.get_filename() or "", words
        else:
            key = part.get_param("name", header="content-disposition")
            fields[str(key)] = words.decode()
    return fields, name, content


def _page(
    service: FakeService, request: httpx.Request, rows: list[dict[str, Any]]
) -> httpx.Response:
    """Newest first, a few at a time."""
    after = request.url.params.get("after")
    names = [row["id"] for row in rows]
    start = names.index(after) + 1 if after else 0
    data = rows[start : start + service.most]
    more = start + service.most < len(rows)
    return httpx.Response(200, json={"object": "list", "data": data, "has_more": more})


def _keep(
    service: FakeService, name: str, content: bytes, purpose: str = "fine-tune"
) -> dict[str, Any]:
    number = f"file-{len(service.files) + 1}"
    service.content[number] = content
    service.files[number] = {
        "id": number,
        "bytes": len(content),
        "filename": name,
        "purpose": purpose,
        "status": "processed",
        "created_at": 1000 + len(service.files),
    }
    return service.files[number]


def add_result(service: FakeService, name: str, content: bytes) -> str:
    """A file that a job wrote."""
    return str(_keep(service, name, content, "fine-tune-results")["id"])


def add_job(service: FakeService, number: str, status: str = "running", **more: Any) -> None:
    service.jobs[number] = {
        "id": number,
        "model": "Phi-3-mini-4k-instruct",
        "status": status,
        "created_at": 1000,
        "finished_at": None,
        "fine_tuned_model": None,
        "training_file": "file-1",
        "validation_file": None,
        "result_files": [],
        "seed": 42,
        "hyperparameters": {"n_epochs": 2, "batch_size": 1, "learning_rate_multiplier": "auto"},
        "error": None,
        "metadata": None,
    } | more


def _new_file(service: FakeService, request: httpx.Request) -> httpx.Response:
    fields, name, content = _form(request)
    assert fields == {"purpose": "fine-tune"}
    return httpx.Response(200, json=_keep(service, name, content))


def _files(service: FakeService, request: httpx.Request) -> httpx.Response:
    return _page(service, request, list(service.files.values())[::-1])


def _file(service: FakeService, request: httpx.Request, number: str) -> httpx.Response:
    if number not in service.files:
        return refusal(404, f"No such File object: {number}")
    if request.method == "DELETE":
        del service.files[number]
        return httpx.Response(200, json={"id": number, "deleted": True})
    return httpx.Response(200, json=service.files[number])


def _content(service: FakeService, _: httpx.Request, number: str) -> httpx.Response:
    return httpx.Response(200, content=service.content[number])


def _new_upload(service: FakeService, request: httpx.Request) -> httpx.Response:
    if not service.has_uploads:
        return refusal(404, "Resource not found")
    number = f"upload_{len(service.uploads) + 1}"
    given = json.loads(request.content)
    service.uploads[number] = {"id": number, "status": "pending", "parts": {}, **given}
    return httpx.Response(200, json={"id": number, "status": "pending", "expires_at": 4e9})


def _new_part(service: FakeService, request: httpx.Request, number: str) -> httpx.Response:
    upload = service.uploads.get(number)
    if upload is None or upload["status"] != "pending":
        return refusal(400, f"Upload {number} is not pending.")
    part = f"part_{number}_{len(upload['parts']) + 1}"
    upload["parts"][part] = _form(request)[2]
    return httpx.Response(200, json={"id": part, "object": "upload.part"})


def _complete(service: FakeService, request: httpx.Request, number: str) -> httpx.Response:
    given, upload = json.loads(request.content), service.uploads[number]
    if upload["status"] != "pending":
        return refusal(400, f"Upload {number} is {upload['status']}.")
    whole = b"".join(upload["parts"][part] for part in given["part_ids"])
    if hashlib.md5(whole, usedforsecurity=False).hexdigest() != given["md5"]:
        return refusal(400, "The md5 is another.")
    upload["status"] = "completed"
    made = _keep(service, upload["filename"], whole)
    return httpx.Response(200, json={"id": number, "status": "completed", "file": made})


def _new_job(service: FakeService, request: httpx.Request) -> httpx.Response:
    given = json.loads(request.content)
    service.bodies.append(given)
    number = f"ftjob-{len(service.jobs) + 1}"
    add_job(service, number, "validating_files", **given)
    return httpx.Response(200, json=service.jobs[number])


def _jobs(service: FakeService, request: httpx.Request) -> httpx.Response:
    return _page(service, request, list(service.jobs.values())[::-1])  # knows no metadata filter


def _job(service: FakeService, _: httpx.Request, number: str) -> httpx.Response:
    if number not in service.jobs:
        return refusal(404, f"Could not find fine tune: {number}")
    return httpx.Response(200, json=service.jobs[number])


def _ask(service: FakeService, _: httpx.Request, number: str, verb: str) -> httpx.Response:
    words = {"cancel": "cancelled", "pause": "paused", "resume": "queued"}
    service.jobs[number]["status"] = words[verb]
    return httpx.Response(200, json=service.jobs[number])


def _events(service: FakeService, request: httpx.Request, _: str) -> httpx.Response:
    return _page(service, request, service.events[::-1])


def _checkpoints(service: FakeService, request: httpx.Request, number: str) -> httpx.Response:
    rows = [
        {
            "id": f"ftckpt_{step}",
            "created_at": 1000 + step,
            "step_number": step,
            "fine_tuned_model_checkpoint": f"ft:phi:o:s:{number}:ckpt-step-{step}",
            "metrics": {"step": step, "train_loss": 2.0 / step, "full_valid_loss": 3.0 / step},
        }
        for step in (3, 2, 1)
    ]
    return _page(service, request, rows)


def _models(_service: FakeService, _: httpx.Request) -> httpx.Response:
    rows = [{"id": "Phi-3-mini-4k-instruct"}, {"id": "ft:phi:o:s:1", "created": 5}]
    return httpx.Response(200, json={"data": rows})


def _model(_service: FakeService, _: httpx.Request, name: str) -> httpx.Response:
    return httpx.Response(200, json={"id": name, "created": 5})


def _deployment(service: FakeService, request: httpx.Request, name: str) -> httpx.Response:
    if request.method == "PUT":
        given = json.loads(request.content)
        given["properties"]["provisioningState"] = "Creating"
        service.deployments[name] = {"name": name, **given}
        return httpx.Response(201, json=service.deployments[name])
    if name not in service.deployments:
        return refusal(404, f"no deployment {name}")
    if request.method == "DELETE":
        service.deployments[name]["properties"]["provisioningState"] = "Deleting"
        return httpx.Response(202)
    shown = json.loads(json.dumps(service.deployments[name]))
    state = service.deployments[name]["properties"]["provisioningState"]
    if state == "Deleting":
        del service.deployments[name]
    service.deployments.get(name, {}).get("properties", {})["provisioningState"] = "Succeeded"
    return httpx.Response(200, json=shown)


def _deployments(service: FakeService, request: httpx.Request) -> httpx.Response:
    rows = sorted(service.deployments)
    page = int(request.url.params.get("page", "0"))
    more = f"https://elsewhere.test{request.url.path}?page={page + 1}"
    body: dict[str, Any] = {"value": [service.deployments[name] for name in rows[page : page + 1]]}
    return httpx.Response(200, json=body | ({"nextLink": more} if page + 1 < len(rows) else {}))


_ARM = "/subscriptions/sub/resourceGroups/group/providers/Microsoft.CognitiveServices/accounts/team"
_DOORS: tuple[tuple[str, Callable[..., httpx.Response]], ...] = (
    ("POST /files", _new_file),
    ("GET /files", _files),
    (r"(?:GET|DELETE) /files/([^/]+)", _file),
    ("GET /files/([^/]+)/content", _content),
    ("POST /uploads", _new_upload),
    ("POST /uploads/([^/]+)/parts", _new_part),
    ("POST /uploads/([^/]+)/complete", _complete),
    ("POST /fine_tuning/jobs", _new_job),
    ("GET /fine_tuning/jobs", _jobs),
    ("GET /fine_tuning/jobs/([^/]+)", _job),
    ("POST /fine_tuning/jobs/([^/]+)/(cancel|pause|resume)", _ask),
    ("GET /fine_tuning/jobs/([^/]+)/events", _events),
    ("GET /fine_tuning/jobs/([^/]+)/checkpoints", _checkpoints),
    ("GET /models", _models),
    ("GET /models/(.+)", _model),
    (f"(?:GET|PUT|DELETE) {_ARM}/deployments/([^/]+)", _deployment),
    (f"GET {_ARM}/deployments", _deployments),
)
