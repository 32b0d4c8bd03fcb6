"""What a test asks of the twin: capacity, quota, latency, faults. Kept in the store, over restarts."""

from __future__ import annotations

import itertools
import math
import random
import re
import threading
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from local_runner.mock_server.errors import ServiceError, user_error
from local_runner.mock_server.store import Store
from maas_client.spec import dataset

_KIND, _KEY = "controls", "now"
_MAX_SECONDS = 3600.0
_TAIL = 2.326
"""Standard deviations from the median to the 99th percentile."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Match(_Part):
    """Which requests a rule is about."""

    method: str = ""
    """GET, PUT, …; empty for all."""
    path: str = ""
    """A regular expression that is searched for in the path, whatever the case."""

    @field_validator("path")
    @classmethod
    def _compiles(cls, text: str) -> str:
        try:
            re.compile(text)
        except re.error as error:
            raise ValueError(f"{text!r} is not a regular expression: {error}") from error
        return text

    def covers(self, method: str, path: str) -> bool:
        """Whether the rule is about this request."""
        return self.method.upper() in ("", method) and bool(
            re.search(self.path, path, re.IGNORECASE)
        )


class Fault(Match):
    """Something that goes wrong, on purpose."""

    kind: Literal["status", "lost-request", "lost-reply", "cut", "slow"]
    """`status`: the answer is this status, and nothing is done. `lost-request`: the connection is closed,
    and nothing is done. `lost-reply`: it is done, and then the connection is closed. `cut`: it is done,
    and the connection is closed in the middle of the answer. `slow`: it is done after `seconds`."""
    status: int = Field(default=503, ge=400, le=599)
    code: str = ""
    """The error's code; a word of the status where none is given."""
    message: str = "A fault that was asked for."
    headers: dict[str, str] = {}
    """Further headers of the `status` answer, as Retry-After."""
    seconds: float = Field(default=1.0, ge=0, le=_MAX_SECONDS)
    bytes: int = Field(default=10, ge=0)
    """How many bytes of the answer's body go out before a `cut`."""
    rate: float = Field(default=1.0, gt=0, le=1)
    """The share of matching requests that it happens to."""
    skip: int = Field(default=0, ge=0)
    """Matching requests to let pass first."""
    times: int | None = Field(default=None, ge=1)
    """How often at most; None for always."""
    id: str = ""
    seen: int = Field(default=0, ge=0)
    fired: int = Field(default=0, ge=0)

    @property
    def is_over(self) -> bool:
        """Whether it happened as often as was asked for."""
        return self.times is not None and self.fired >= self.times


class Latency(Match):
    """How long answers take: log-normal, as networks are."""

    median_ms: float = Field(ge=0, le=_MAX_SECONDS * 1000)
    p99_ms: float | None = None
    """The median where none is given: always the same."""

    def seconds(self, dice: random.Random) -> float:
        """One answer's."""
        if not self.p99_ms or self.p99_ms <= self.median_ms or not self.median_ms:
            return self.median_ms / 1000
        spread = math.log(self.p99_ms / self.median_ms) / _TAIL
        return self.median_ms / 1000 * math.exp(spread * dice.gauss(0, 1))


class Quota(_Part):
    """How much there may be at once; None for no end."""

    jobs: int | None = Field(default=None, ge=0)
    """Jobs that are not over."""
    endpoints: int | None = Field(default=None, ge=0)
    models: int | None = Field(default=None, ge=0)
    """Registered models, counted by version: a job whose output would be one more is refused."""


class Settings(_Part):
    """Everything that can be set."""

    capacity: int = Field(default=1, ge=1)
    """Jobs that run at once; the rest are queued."""
    quota: Quota = Quota()
    weights: bool = False
    """Whether OpenAI's doors hand out a job's adapter among its result files. The service never does."""
    file_bytes: int = Field(default=dataset.MAX_BYTES, ge=1)
    """How large a file of rows may be at OpenAI's doors; the default is the service's."""
    latency: tuple[Latency, ...] = ()
    """The first that covers a request counts."""
    faults: tuple[Fault, ...] = ()
    """Looked at in their order; the first that happens counts."""


PROFILES: dict[str, tuple[Latency, ...]] = {
    "none": (),
    "near": (Latency(median_ms=8, p99_ms=40),),
    # Round numbers of a client on another continent, not a measurement of the service.
    "far": (
        Latency(method="PUT", path="/(jobs|serverlessEndpoints)/", median_ms=900, p99_ms=4000),
        Latency(path="blob", median_ms=120, p99_ms=700),
        Latency(median_ms=250, p99_ms=1500),
    ),
}
"""Latencies by name."""


class Controls:
    """The settings in force."""

    def __init__(self, store: Store, settings: Settings, *, seed: int | None = None) -> None:
        self._store = store
        self._default = settings
        self._dice = random.Random(seed)  # noqa: S311 - chances, not secrets
        self.lock = threading.RLock()
        """Who changes the settings by what they are holds it; never taken within a transaction."""
        self.settings = settings
        self.reload()

    @property
    def capacity(self) -> int:
        return self.settings.capacity

    def change(self, given: dict[str, Any]) -> Settings:
        """Set what is given, leave the rest.

        Raises:
            ServiceError: it makes no sense.
        """
        if isinstance(name := given.get("latency"), str):
            if name not in PROFILES:
                raise user_error(
                    f"latency {name!r} is no profile; there are {', '.join(PROFILES)}.",
                    inner="InvalidControl",
                )
            given = given | {"latency": [rule.model_dump() for rule in PROFILES[name]]}
        with self.lock:
            try:
                wanted = Settings.model_validate(self.settings.model_dump() | given)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                where = ".".join(str(part) for part in first["loc"])
                raise user_error(f"{where}: {first['msg']}", inner="InvalidControl") from error
            faults = _named(_counted(wanted.faults, self.settings.faults))
            return self._keep(wanted.model_copy(update={"faults": tuple(faults)}))

    def reset(self) -> None:
        """As at the start."""
        with self.lock:
            self._keep(self._default)

    def reload(self) -> None:
        """As the store has it; what nobody changed is as this server was started with."""
        with self.lock:
            kept = self._store.get(_KIND, _KEY) or {}
            self.settings = Settings.model_validate(self._default.model_dump() | kept)

    def covers(self, method: str, path: str) -> bool:
        """Whether some fault is about this request: only then has `fault` anything to do."""
        return any(
            not fault.is_over and fault.covers(method, path) for fault in self.settings.faults
        )

    def fault(self, method: str, path: str) -> Fault | None:
        """What goes wrong with this request; it counts as having happened. Waits for the disk."""
        with self.lock:
            faults = list(self.settings.faults)
            happens = None
            for place, fault in enumerate(faults):
                if happens is not None or fault.is_over or not fault.covers(method, path):
                    continue
                fires = fault.seen >= fault.skip and self._dice.random() < fault.rate
                counted = {"seen": fault.seen + 1, "fired": fault.fired + fires}
                faults[place] = fault.model_copy(update=counted)
                happens = fault if fires else None
            if tuple(faults) != self.settings.faults:
                self._keep(self.settings.model_copy(update={"faults": tuple(faults)}))
            return happens

    def delay(self, method: str, path: str) -> float:
        """Seconds that this request has to wait."""
        for rule in self.settings.latency:
            if rule.covers(method, path):
                return rule.seconds(self._dice)
        return 0.0

    def check(self, what: Literal["jobs", "endpoints", "models"], there: int) -> None:
        """Whether one more may come.

        Raises:
            ServiceError: the quota is used up.
        """
        most = getattr(self.settings.quota, what)
        if most is not None and there >= most:
            raise ServiceError(
                403,
                "UserError",
                f"The quota of the workspace allows {most} {what}, and there are {there}. "
                "Delete some, or ask for a higher quota.",
                inner="QuotaExceeded",
            )

    def _keep(self, settings: Settings) -> Settings:
        start, now = self._default.model_dump(mode="json"), settings.model_dump(mode="json")
        changed = {key: value for key, value in now.items() if value != start[key]}
        self._store.put(_KIND, _KEY, changed)
        self.settings = settings
        return settings


def _named(faults: Sequence[Fault]) -> list[Fault]:
    """Each with an id of its own."""
    taken = {fault.id for fault in faults}
    free = (name for name in map("fault-{}".format, itertools.count(1)) if name not in taken)
    return [fault if fault.id else fault.model_copy(update={"id": next(free)}) for fault in faults]


def _counted(given: Sequence[Fault], now: Sequence[Fault]) -> list[Fault]:
    """Those that were read, and are sent back with others: what happened since has happened."""
    before = {fault.id: fault for fault in now}
    counted = []
    for fault in given:
        known = before.get(fault.id) if "fired" in fault.model_fields_set else None
        since = {"seen": known.seen, "fired": known.fired} if known else {}
        counted.append(fault.model_copy(update=since))
    return counted
