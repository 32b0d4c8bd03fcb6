"""What OpenAI's doors refuse: the exception that the SDK's user gets, status, code, parameter and text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest

from tests.mocking import running_mock
from tests.openai_clients import HELLO, MODEL, Doors, rows, tuned

BAD, ABSENT = openai.BadRequestError, openai.NotFoundError


@dataclass(frozen=True)
class Place:
    """A mock with a good file, a bad one, and a job that is over."""

    doors: Doors
    client: openai.OpenAI
    good: str
    bad: str
    job: str
    result: str
    tuned: str
    upload: str

    def create(self, **given: Any) -> Any:
        """A job; what is given takes the place of what is good, and None leaves it out."""
        wanted = {"model": MODEL, "training_file": self.good} | given
        return self.client.fine_tuning.jobs.create(**wanted)

    def ask(self, **given: Any) -> Any:
        return self.client.chat.completions.create(**({"model": MODEL, "messages": HELLO} | given))

    def file(self, content: bytes = b"x", purpose: Any = "fine-tune", **more: Any) -> Any:
        return self.client.files.create(file=("x.jsonl", content), purpose=purpose, **more)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    options = ("--engine", "simulate", "--simulate-seconds", "0.1")
    with running_mock(tmp_path_factory.mktemp("mock"), *options) as mock:
        doors = Doors(mock)
        with doors.openai() as client:
            job = tuned(client)
            bad = client.files.create(file=("bad.jsonl", b"{\n"), purpose="fine-tune")
            upload = client.uploads.create(
                bytes=9, filename="x.jsonl", mime_type="application/jsonl", purpose="fine-tune"
            )
            yield Place(
                doors,
                client,
                good=job.training_file,
                bad=bad.id,
                job=job.id,
                result=job.result_files[0],
                tuned=job.fine_tuned_model,
                upload=upload.id,
            )


def knobs(**given: Any) -> dict[str, Any]:
    return {"method": {"type": "supervised", "supervised": {"hyperparameters": given}}}


EPOCHS = "method.supervised.hyperparameters.n_epochs"
TAGS = {f"k{n}": "v" for n in range(17)}
Ask = Callable[[Place], Any]
REFUSALS: dict[str, tuple[Ask, type[openai.APIStatusError], str, str | None, str]] = {
    # jobs
    "no model": (lambda p: p.create(model=""), BAD, "missing_required_parameter", "model", "Missing required parameter: 'model'"),
    "unknown model": (lambda p: p.create(model="gpt-9"), BAD, "model_not_available", "model", "Model gpt-9 is not available for fine-tuning"),
    "untunable model": (lambda p: p.create(model="Phi-3-small-8k-instruct"), BAD, "model_not_available", "model", "not available for fine-tuning"),
    "tuned model": (lambda p: p.create(model=p.tuned), BAD, "model_not_available", "model", "not available for fine-tuning"),
    "absent file": (lambda p: p.create(training_file="file-0"), BAD, "invalid_file_id", "training_file", "invalid training_file: file-0"),
    "bad file": (lambda p: p.create(training_file=p.bad), BAD, "invalid_training_file", "training_file", "cannot be trained on: line 1"),
    "bad validation": (lambda p: p.create(validation_file=p.bad), BAD, "invalid_validation_file", "validation_file", "cannot be trained on"),
    "absent validation": (lambda p: p.create(validation_file="file-0"), BAD, "invalid_file_id", "validation_file", "invalid validation_file"),
    "result file": (lambda p: p.create(training_file=p.result), BAD, "invalid_file_purpose", "training_file", "has the purpose fine-tune-results"),
    "long suffix": (lambda p: p.create(suffix="x" * 65), BAD, "string_above_max_length", "suffix", "65 characters; at most 64"),
    "odd suffix": (lambda p: p.create(suffix="a b"), BAD, "invalid_value", "suffix", "letters, digits"),
    "seed": (lambda p: p.create(seed=-1), BAD, "invalid_value", "seed", "seed must be a whole number"),
    "no epochs": (lambda p: p.create(**knobs(n_epochs=0)), BAD, "invalid_hyperparameter", EPOCHS, "it must be from 1 to 50"),
    "many epochs": (lambda p: p.create(**knobs(n_epochs=51)), BAD, "invalid_hyperparameter", EPOCHS, "is 51; it must be from 1 to 50"),
    "half an epoch": (lambda p: p.create(**knobs(n_epochs=0.5)), BAD, "invalid_type", EPOCHS, "'auto' or a whole number"),
    "batch": (lambda p: p.create(hyperparameters={"batch_size": 257}), BAD, "invalid_hyperparameter", "hyperparameters.batch_size", "from 1 to 256"),
    "rate": (lambda p: p.create(hyperparameters={"learning_rate_multiplier": 0}), BAD, "invalid_hyperparameter", "hyperparameters.learning_rate_multiplier", "above 0 to 5"),
    "unknown knob": (lambda p: p.create(hyperparameters={"lora_r": 8}), BAD, "unknown_parameter", "hyperparameters.lora_r", "Unrecognized hyperparameter"),
    "knobs twice": (lambda p: p.create(**knobs(n_epochs=1), hyperparameters={"n_epochs": 1}), BAD, "mutually_exclusive_parameters", "hyperparameters", "not in both"),
    "dpo": (lambda p: p.create(method={"type": "dpo"}), BAD, "unsupported_method", "method.type", "The method dpo is not supported"),
    "reinforcement": (lambda p: p.create(method={"type": "reinforcement"}), BAD, "unsupported_method", "method.type", "reinforcement is not supported"),
    "odd method": (lambda p: p.create(method={"type": "magic"}), BAD, "invalid_value", "method.type", "one of supervised, dpo"),
    "wandb": (lambda p: p.create(integrations=[{"type": "wandb", "wandb": {"project": "x"}}]), BAD, "unsupported_integration", "integrations", "not available"),
    "many tags": (lambda p: p.create(metadata=TAGS), BAD, "object_above_max_properties", "metadata", "17 pairs; at most 16"),
    "long tag": (lambda p: p.create(metadata={"k": "v" * 513}), BAD, "string_above_max_length", "metadata.k", "513 characters"),
    "long key": (lambda p: p.create(metadata={"k" * 65: "v"}), BAD, "string_above_max_length", "metadata", "1 to 64 characters"),
    "number tag": (lambda p: p.create(metadata={"k": 1}), BAD, "invalid_type", "metadata.k", "must be a string"),
    "unknown field": (lambda p: p.create(extra_body={"colour": "red"}), BAD, "unknown_parameter", "colour", "Unknown parameter: 'colour'"),
    "training type": (lambda p: p.create(extra_body={"trainingType": "slow"}), BAD, "invalid_value", "trainingType", "Standard, GlobalStandard"),
    "absent job": (lambda p: p.client.fine_tuning.jobs.retrieve("ftjob-0"), ABSENT, "fine_tune_not_found", "fine_tune_id", "Could not find fine tune: ftjob-0"),
    "absent job's events": (lambda p: p.client.fine_tuning.jobs.list_events("ftjob-0"), ABSENT, "fine_tune_not_found", "fine_tune_id", "Could not find"),
    "cancel what is over": (lambda p: p.client.fine_tuning.jobs.cancel(p.job), BAD, "invalid_job_state", None, "is succeeded: cancel is not possible"),
    "pause what is over": (lambda p: p.client.fine_tuning.jobs.pause(p.job), BAD, "invalid_job_state", None, "pause is not possible"),
    "resume what is over": (lambda p: p.client.fine_tuning.jobs.resume(p.job), BAD, "invalid_job_state", None, "resume is not possible"),
    "limit": (lambda p: p.client.fine_tuning.jobs.list(limit=101), BAD, "invalid_value", "limit", "from 1 to 100"),
    "cursor": (lambda p: p.client.fine_tuning.jobs.list(after="ftjob-0"), BAD, "invalid_value", "after", "names nothing"),
    # files
    "no content": (lambda p: p.file(b""), BAD, "empty_file", "file", "The file is empty"),
    "purpose": (lambda p: p.file(purpose="assistants"), BAD, "invalid_value", "purpose", "files are for 'fine-tune'"),
    "soon gone": (lambda p: p.file(expires_after={"anchor": "created_at", "seconds": 5}), BAD, "invalid_value", "expires_after.seconds", "from 3600"),
    "absent content": (lambda p: p.client.files.content("file-0"), ABSENT, "not_found", "id", "No such File object: file-0"),
    "delete absent": (lambda p: p.client.files.delete("file-0"), ABSENT, "not_found", "id", "No such File object"),
    "huge upload": (lambda p: p.client.uploads.create(bytes=8 * 1024**3 + 1, filename="x", mime_type="x", purpose="fine-tune"), BAD, "invalid_value", "bytes", "from 1 to 8,589,934,592"),
    "absent upload": (lambda p: p.client.uploads.cancel("upload_0"), ABSENT, "not_found", "upload_id", "No such Upload: upload_0"),
    "unfinished upload": (lambda p: p.client.uploads.complete(p.upload, part_ids=["part_0"]), BAD, "invalid_value", "part_ids", "No such part: part_0"),
    # models and chat
    "absent model": (lambda p: p.client.models.retrieve("gpt-9"), ABSENT, "model_not_found", "model", "The model 'gpt-9' does not exist"),
    "delete a base": (lambda p: p.client.models.delete(MODEL), openai.PermissionDeniedError, "model_not_deletable", "model", "cannot be deleted"),
    "ask nobody": (lambda p: p.ask(model="gpt-9"), ABSENT, "model_not_found", "model", "does not exist"),
    "no messages": (lambda p: p.ask(messages=[]), BAD, "invalid_messages", "messages", "at least one turn"),
    "no role": (lambda p: p.ask(messages=[{"content": "x"}]), BAD, "invalid_messages", "messages", "messages[0] has no valid role"),
    "temperature": (lambda p: p.ask(temperature=2.1), BAD, "invalid_value", "temperature", "from 0 to 2"),
    "top_p": (lambda p: p.ask(top_p=2), BAD, "invalid_value", "top_p", "from 0 to 1"),
    "max_tokens": (lambda p: p.ask(max_tokens=0), BAD, "invalid_value", "max_tokens", "from 1 to"),
    "completion tokens": (lambda p: p.ask(max_completion_tokens=0), BAD, "invalid_value", "max_completion_tokens", "from 1 to"),
    "stops": (lambda p: p.ask(stop=list("abcde")), BAD, "invalid_value", "stop", "at most 4"),
    "n": (lambda p: p.ask(n=129), BAD, "invalid_value", "n", "from 1 to 128"),
    "logprobs": (lambda p: p.ask(logprobs=True), BAD, "unsupported_parameter", "logprobs", "'logprobs' is not supported"),
    "tools": (lambda p: p.ask(tools=[{"type": "function", "function": {"name": "f"}}]), BAD, "unsupported_parameter", "tools", "'tools' is not supported"),
    "json": (lambda p: p.ask(response_format={"type": "json_object"}), BAD, "unsupported_value", "response_format", "must be text"),
    "penalty": (lambda p: p.ask(frequency_penalty=1), BAD, "unsupported_value", "frequency_penalty", "must be 0"),
    "options": (lambda p: p.ask(stream_options={"include_usage": True}), BAD, "invalid_value", "stream_options", "only allowed when 'stream'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_what_the_service_refuses_is_refused_in_its_form(place: Place, case: str) -> None:
    ask, kind, code, param, text = REFUSALS[case]
    with pytest.raises(kind) as caught:
        ask(place)
    error = caught.value
    assert (type(error), error.code, error.param) == (kind, code, param)
    assert error.status_code == kind.status_code  # type: ignore[attr-defined]
    assert text in error.message
    assert error.request_id
    body: Any = error.body
    assert set(body) == {"message", "type", "param", "code"}


def test_azure_takes_a_shorter_suffix_and_wants_a_version(place: Place) -> None:
    with place.doors.azure() as client, pytest.raises(BAD, match="19 characters; at most 18"):
        client.fine_tuning.jobs.create(model=MODEL, training_file=place.good, suffix="x" * 19)
    with place.doors.bare(**{"api-key": place.doors.key}) as bare:
        for path in ("/openai/files", "/openai/deployments/x/chat/completions"):
            method = "GET" if path.endswith("files") else "POST"
            answer = bare.request(method, path, json={"messages": HELLO})
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "404")


def test_nothing_deployed_is_said_as_azure_says_it(place: Place) -> None:
    with place.doors.azure() as client, pytest.raises(ABSENT) as caught:
        client.chat.completions.create(model="nobody", messages=HELLO)
    assert caught.value.code == "DeploymentNotFound"


@pytest.mark.parametrize("key", ["", "nobodys-key", "a.b.c"])
def test_a_wrong_key_is_refused_everywhere(place: Place, key: str) -> None:
    for base in ("/v1/models", "/openai/v1/models", "/openai/models?api-version=1"):
        for headers in ({"api-key": key}, {"Authorization": f"Bearer {key}".strip()}):
            with place.doors.bare(**headers) as bare:
                answer = bare.get(base)
            assert answer.status_code == 401, (base, headers)
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
            assert key == "" or key not in error["message"]
    with place.doors.openai(api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "status"),
    [
        ("GET", "/v1/no/such/thing", b"", {}, 404),
        ("PATCH", "/v1/files", b"{}", {}, 405),
        ("POST", "/v1/fine_tuning/jobs", b"{", {}, 400),
        ("POST", "/v1/fine_tuning/jobs", b"[]", {}, 400),
        ("POST", "/v1/chat/completions", b" " * (5 * 1024 * 1024), {}, 413),
        ("POST", "/v1/files", b"{}", {"content-type": "application/json"}, 400),
        ("POST", "/v1/files", b"--a", {"content-type": "multipart/form-data; boundary=a"}, 400),
        ("POST", "/v1/files", b"x", {"content-type": "multipart/form-data"}, 400),
    ],
)
def test_garbage_is_answered_in_openais_form(
    place: Place, method: str, path: str, content: bytes, headers: dict[str, str], status: int
) -> None:
    with place.doors.bare(Authorization=f"Bearer {place.doors.key}") as bare:
        answer = bare.request(method, path, content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_part_that_is_too_large_is_refused_while_it_comes(place: Place) -> None:
    def endless() -> Iterator[bytes]:
        yield b'--a\r\nContent-Disposition: form-data; name="data"; filename="x"\r\n\r\n'
        for _ in range(70):
            yield b"x" * 1024 * 1024

    headers = {"content-type": "multipart/form-data; boundary=a"}
    path = f"/v1/uploads/{place.upload}/parts"
    with place.doors.bare(Authorization=f"Bearer {place.doors.key}") as bare:
        try:
            answer = bare.post(path, content=endless(), headers=headers)
        except httpx.WriteError:
            return  # it was still sending when it was sent away
    assert answer.status_code == 413
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("status", "kind", "word"),
    [
        (429, openai.RateLimitError, "requests"),
        (503, openai.InternalServerError, "server_error"),
        (409, openai.ConflictError, "invalid_request_error"),
    ],
)
def test_a_fault_that_was_asked_for_has_openais_form(
    place: Place, status: int, kind: type[openai.APIStatusError], word: str
) -> None:
    rule = {"kind": "status", "path": "^/v1/", "status": status, "headers": {"retry-after": "1"}}
    with place.doors.fault(**rule), pytest.raises(kind) as caught:
        place.client.models.list()
    body: Any = caught.value.body
    assert (body["type"], body["message"]) == (word, "A fault that was asked for.")
    assert caught.value.response.headers["retry-after"] == "1"


def test_the_sdk_posts_a_job_again_after_a_lost_reply_and_makes_two(place: Place) -> None:
    """As on the service: who wants one job has to mark it, and to look before asking again."""
    mark = {"mark": "lost"}
    rule = {"kind": "lost-reply", "method": "POST", "path": "fine_tuning", "times": 1}
    with place.doors.fault(**rule), place.doors.openai(max_retries=2) as client:
        client.fine_tuning.jobs.create(model=MODEL, training_file=place.good, metadata=mark)
    assert len(list(place.client.fine_tuning.jobs.list(metadata=mark))) == 2


def test_a_quota_of_jobs_is_a_refusal(place: Place) -> None:
    with place.doors.stopped_clock():
        held = place.create()
        with place.doors.controls(quota={"jobs": 1}), pytest.raises(openai.PermissionDeniedError):
            place.create()
        place.client.fine_tuning.jobs.cancel(held.id)


def test_arm_refuses_deployments_in_its_own_form(place: Place) -> None:
    def model(name: str) -> dict[str, Any]:
        return {"sku": {"name": "Standard"}, "properties": {"model": {"name": name}}}

    account = place.doors.account
    with place.doors.arm() as arm:
        cases = [
            (f"{account}/deployments/x", model("gpt-9"), 400, "DeploymentModelNotSupported"),
            (f"{account}/deployments/x", model(MODEL) | {"sku": {}}, 400, "InvalidResourceProperties"),
            (f"{account}/deployments/-", model(MODEL), 400, "InvalidResourceName"),
            (account.replace("mock-foundry", "other") + "/deployments/x", model(MODEL), 404, "ResourceNotFound"),
        ]  # fmt: skip
        for path, body, status, code in cases:
            answer = arm.put(path, content=json.dumps(body))
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert arm.get(f"{account}/deployments/absent").status_code == 404
    with place.doors.bare() as bare:
        assert bare.get(account).status_code == 401


def test_rows_that_are_good_stay_good(place: Place) -> None:
    """The table above refuses for its reasons, not because nothing is accepted."""
    job = place.create(
        **knobs(n_epochs=1, batch_size=256, learning_rate_multiplier=5),
        suffix="x" * 64,
        metadata={"k" * 64: "v" * 512},
    )
    assert job.status
    assert place.file(rows()).status == "processed"
