"""Everything that can go wrong, in one tree.

MaasError
├── SpecError          a job file is wrong
├── DatasetError       training rows are wrong
├── SettingsError      a target is unknown or not configured
├── PlanError          the target would refuse the job
├── RunnerError        the local runner is missing, or it failed
│   └── BaseModelError     the base model is missing or broken
├── RunDirError        a run directory is locked, broken or not one
└── TargetError        the target answered with an error
    ├── AuthError          not logged in, or not allowed
    ├── NotFoundError      no such job, model or endpoint
    ├── ConflictError      the name is taken by something else
    ├── UnreachableError   no answer at all
    └── AmbiguousError     no answer to a request that may have been done
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, where it is, and what to do about it."""

    message: str
    """What is wrong, with the key and the value."""
    line: int | None = None
    """Line in the file, from 1."""
    column: int | None = None
    """Character in the line, from 1."""
    hint: str = ""
    """The next step."""
    code: str = ""
    """A stable word for programs, such as `unknown_key`."""

    def __str__(self) -> str:
        place = "" if self.line is None else f"line {self.line}"
        if self.column is not None:
            place += f", column {self.column}"
        text = f"{place}: {self.message}" if place else self.message
        return f"{text} ({self.hint})" if self.hint else text

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class MaasError(Exception):
    """The root. `hint` is the next step; `problems` lists each fault where there are several."""

    def __init__(self, message: str, *, hint: str = "", problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.problems = problems

    def __str__(self) -> str:
        lines = [self.message, *(f"  {problem}" for problem in self.problems)]
        if self.hint:
            lines.append(self.hint)
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The error for `--json`, with a stable type name."""
        return {
            "type": type(self).__name__,
            "message": self.message,
            "hint": self.hint,
            "problems": [problem.to_json() for problem in self.problems],
        }


class SpecError(MaasError):
    """A job file is wrong."""


class DatasetError(MaasError):
    """Training rows are wrong."""


class SettingsError(MaasError):
    """A target is unknown or not configured."""


class PlanError(MaasError):
    """The target would refuse the job."""


class RunnerError(MaasError):
    """The local runner is missing, or it failed."""


class BaseModelError(RunnerError):
    """The base model is missing or broken."""


class RunDirError(MaasError):
    """A run directory is locked, broken or not one."""


class TargetError(MaasError):
    """The target answered with an error. `status` is the HTTP status where there is one."""

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        problems: tuple[Problem, ...] = (),
        status: int | None = None,
        code: str = "",
        request_id: str = "",
    ) -> None:
        super().__init__(message, hint=hint, problems=problems)
        self.status = status
        self.code = code
        self.request_id = request_id

    @property
    def may_pass(self) -> bool:
        """Whether the same question may be answered later: throttled, or the target's own failure."""
        return self.status in (408, 429) or (self.status or 0) >= 500

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {
            "status": self.status,
            "code": self.code,
            "request_id": self.request_id,
        }


class AuthError(TargetError):
    """Not logged in, or not allowed."""

    challenge: str = ""
    """The `WWW-Authenticate` header of the answer: how the service wants to be asked."""


class NotFoundError(TargetError):
    """No such job, model or endpoint."""


class ConflictError(TargetError):
    """The name is taken by something else."""


class UnreachableError(TargetError):
    """No answer at all."""

    @property
    def may_pass(self) -> bool:
        return True


class AmbiguousError(TargetError):
    """No usable answer to a request that may have been done: look before asking again."""

    @property
    def may_pass(self) -> bool:
        return True
