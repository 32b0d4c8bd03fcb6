"""Chat templates: a conversation as the model's own text, or why the template cannot say it.

What a template has no place for, it leaves out without a word: Phi-3-medium's drops system turns,
most of the family drop tool calls. So each template is asked first, with a mark for the words.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

Message = Mapping[str, Any]
SystemTurns = Literal["fold", "refuse"]

MARK = "\ue000\ue001\ue000"
"""Stands for words whose place is looked for; private characters, no letters."""
_MARKER = re.compile(r"<\|[^|<>\s]+\|>")
_CALL, _CALL_END = "<|tool_call|>", "<|/tool_call|>"
"""Phi-4-mini's tokens around a list of calls; Microsoft's template leaves writing them to its user."""
_USER = {"role": "user", "content": "?"}


class ChatTemplate:
    """One template, compiled.

    Args:
        source: jinja, as `chat_template` has it.
        bos: the text of the token that begins a text.
        eos: the text of the token that ends one.
        added: every token that the tokenizer knows by its own text.
    """

    def __init__(self, source: str, *, bos: str, eos: str, added: Collection[str]) -> None:
        self._template = compile_template(source)
        self._bos, self._eos, self._added = bos, eos, frozenset(added)

    def render(
        self, messages: Sequence[Message], *, answer: bool = False, tools: Any = None
    ) -> str:
        """The conversation as text; with `answer`, up to where the assistant begins to speak."""
        extra = {} if tools is None else {"tools": tools}
        return str(
            self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=answer,
                bos_token=self._bos,
                eos_token=self._eos,
                **extra,
            )
        )

    @cached_property
    def keeps_system(self) -> bool:
        """Whether a system turn reaches the model."""
        return not self._objection([{"role": "system", "content": MARK}, _USER])

    @cached_property
    def tools_in(self) -> Literal["template", "system turn"] | None:
        """How the template is told the tools: as a variable, or Phi-4-mini's way, in the system turn."""
        tool = {"type": "function", "function": {"name": MARK, "description": "", "parameters": {}}}
        if not self._objection([_USER], tools=[tool]):
            return "template"
        within = {"role": "system", "content": "", "tools": MARK}
        return None if self._objection([within, _USER]) else "system turn"

    @cached_property
    def writes_calls(self) -> bool:
        """Whether the template writes an assistant's `tool_calls` itself."""
        return not self._objection([_USER, _calling({"name": MARK, "arguments": {}})])

    @cached_property
    def objection_to_results(self) -> str:
        """Why a turn of a tool cannot be written; empty where it can."""
        call = _calling({"name": "f", "arguments": {}}) if self.writes_calls else _SAID
        result = {"role": "tool", "content": MARK, "name": "f", "tool_call_id": "0"}
        return self._objection([_USER, call, result])

    def _objection(self, messages: Sequence[Message], *, tools: Any = None) -> str:
        """Why the marked words would not reach the model as they should; empty where they do."""
        try:
            text = self.render(messages, tools=tools)
        except Exception as error:  # noqa: BLE001 - a template raises what it likes
            return f"the chat template fails on it: {error}"
        if MARK not in text:
            return "the chat template leaves it out"
        for word in _MARKER.findall(text):
            if word not in self._added:
                return f"the chat template writes {word}, which is no token of this tokenizer"
        return ""

    def sayable(
        self, messages: Sequence[Message], tools: Any = None, *, system_turns: SystemTurns = "fold"
    ) -> tuple[list[dict[str, Any]], Any]:
        """The conversation as the template can say all of it, and the tools that it is given.

        Args:
            messages: turns of a checked row, or a question's.
            tools: the row's tools, as OpenAI has them.
            system_turns: what becomes of a system turn that the template has no place for: `fold` puts
                its words before the next user turn.

        Raises:
            ValueError: the template has no place for a part of it; which, and why.
        """
        turns = [dict(message) for message in messages]
        if not self.keeps_system and any(turn["role"] == "system" for turn in turns):
            if system_turns == "refuse":
                raise LostSystemError
            turns = _folded(turns)
        turns = [self._turn(turn) for turn in turns]
        if not tools:
            return turns, None
        match self.tools_in:
            case "template":
                return turns, tools
            case "system turn":
                return _with_tools(turns, tools), None
            case None:
                raise ValueError("the chat template has no place for tools")

    def _turn(self, turn: dict[str, Any]) -> dict[str, Any]:
        if turn["role"] == "tool" and (why := self.objection_to_results):
            raise ValueError(f"a tool's turn cannot be written: {why}")
        calls = turn.get("tool_calls")
        if not calls:
            return turn
        said = turn.get("content") or ""
        plain = [_plain(call) for call in calls]
        if self.writes_calls:
            named = [{**call, "function": made} for call, made in zip(calls, plain, strict=True)]
            return {**turn, "content": said, "tool_calls": named}
        if not {_CALL, _CALL_END} <= self._added:
            raise ValueError("the chat template has no place for tool_calls")
        words = json.dumps(plain, ensure_ascii=False)
        kept = {key: value for key, value in turn.items() if key != "tool_calls"}
        return {**kept, "content": f"{said}{_CALL}{words}{_CALL_END}"}


class LostSystemError(ValueError):
    """The template would drop a system turn."""

    def __init__(self) -> None:
        super().__init__("the chat template has no place for the system turn, and would drop it")


_SAID = {"role": "assistant", "content": "?"}


def _calling(function: Mapping[str, Any]) -> Message:
    call = {"id": "0", "type": "function", "function": function}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _plain(call: Mapping[str, Any]) -> dict[str, Any]:
    """Name and arguments of a call; OpenAI's rows have the arguments as JSON in a text."""
    function = call.get("function", call)
    given = function.get("arguments", {})
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            raise ValueError(f"the arguments of {function.get('name')} are no JSON") from None
    return {"name": function.get("name"), "arguments": given}


def _folded(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each system turn's words before those of the next user turn."""
    done: list[dict[str, Any]] = []
    waiting: list[str] = []
    for turn in turns:
        if turn["role"] == "system":
            waiting.append(turn["content"])
        elif turn["role"] == "user" and waiting:
            done.append({**turn, "content": "\n\n".join([*waiting, turn["content"]])})
            waiting = []
        else:
            done.append(turn)
    if waiting:
        done.append({"role": "user", "content": "\n\n".join(waiting)})
    return done


def _with_tools(turns: list[dict[str, Any]], tools: Sequence[Any]) -> list[dict[str, Any]]:
    """The tools in the system turn, as Phi-4-mini's model card lists them; an empty one is made for them."""
    listed = [tool.get("function", tool) if isinstance(tool, dict) else tool for tool in tools]
    if turns[0]["role"] != "system":
        turns = [{"role": "system", "content": ""}, *turns]
    return [{**turns[0], "tools": json.dumps(listed, ensure_ascii=False)}, *turns[1:]]


def compile_template(source: str) -> Any:
    """A chat template in the sandbox and with the helpers that transformers gives it."""
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def to_json(value: object, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=False, **options)

    # The rendered text goes to a tokenizer, not to a browser: escaping would change it.
    box = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols], autoescape=False
    )
    box.filters["tojson"] = to_json
    box.globals["raise_exception"] = refuse
    box.globals["strftime_now"] = lambda form: dt.datetime.now(tz=dt.UTC).strftime(form)
    return box.from_string(source)
