"""A chat_completion row: turns in order, with what may stand in each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from maas_client.spec.json_place import JsonPath
from maas_client.spec.rows import Fault, kind, text_faults

ROLES = ("system", "user", "assistant", "tool")
_MESSAGE_KEYS = ("role", "content", "name", "weight", "tool_calls", "tool_call_id")


def faults(row: Any) -> Iterator[Fault]:
    """What is wrong with a chat_completion row."""
    if not isinstance(row, dict):
        fix = 'write {"messages": […]}'
        yield Fault("not_an_object", f"the row is {kind(row)}, not an object", fix)
        return
    for key in row:
        if key not in ("messages", "tools"):
            fix = "remove it; only messages (and tools) are read"
            yield Fault("unknown_key", f"{key!r} is not a key of a chat row", fix, (key,), key=True)
    yield from _tools(row.get("tools"))
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        what = "an empty list" if messages == [] else kind(messages)
        message = f"messages is {what}" if "messages" in row else "the row has no messages"
        yield Fault(
            "no_messages", message, "write a list of turns, the last the assistant's", ("messages",)
        )
        return
    yield from _turns(messages)


def _tools(tools: Any) -> Iterator[Fault]:
    """What is wrong with a row's tools; none is as good as null."""
    fix = 'write a list of {"type": "function", "function": {"name": "…", …}}'
    if tools is None:
        return
    if not isinstance(tools, list):
        yield Fault("tools", f"tools is {kind(tools)}, not a list", fix, ("tools",))
        return
    for index, tool in enumerate(tools):
        if not _names_function(tool):
            yield Fault("tools", f"tool {index + 1} names no function", fix, ("tools", index))


def _names_function(entry: Any) -> bool:
    """Whether a tool or call has a function's name: in `function`, or bare, as Phi-4-mini's card has it."""
    function = entry.get("function", entry) if isinstance(entry, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return isinstance(name, str) and bool(name)


def _turns(messages: list[Any]) -> Iterator[Fault]:
    ordered = True  # whether the roles are all known, so that their order can be judged
    for index, message in enumerate(messages):
        for fault in _message(message, index):
            ordered = ordered and fault.code not in ("role", "not_an_object", "tool_calls")
            yield fault
    if ordered:
        yield from _order(messages)


def _message(message: Any, index: int) -> Iterator[Fault]:
    at: JsonPath = ("messages", index)
    if not isinstance(message, dict):
        yield Fault(
            "not_an_object",
            f"turn {index + 1} is {kind(message)}, not an object",
            "write role and content",
            at,
        )
        return
    for key in message:
        if key not in _MESSAGE_KEYS:
            fix = f"allowed: {', '.join(_MESSAGE_KEYS)}"
            yield Fault("unknown_key", f"{key!r} is not a key of a turn", fix, (*at, key), key=True)
    role = message.get("role")
    if role not in ROLES:
        what = "has no role" if role is None else f"has the role {role!r}"
        yield Fault("role", f"turn {index + 1} {what}", f"use {', '.join(ROLES)}", (*at, "role"))
        return
    yield from _content(message, at, index)
    if "weight" in message:
        weight = message["weight"]
        if role != "assistant" or isinstance(weight, bool) or weight not in (0, 1):
            fix = "only an assistant turn takes a weight, 0 (not trained) or 1"
            yield Fault(
                "weight", f"turn {index + 1} ({role}) has weight {weight!r}", fix, (*at, "weight")
            )


def _content(message: dict[str, Any], at: JsonPath, index: int) -> Iterator[Fault]:
    calls = message.get("tool_calls")
    if calls is not None and (
        message["role"] != "assistant" or not isinstance(calls, list) or not calls
    ):
        yield Fault(
            "tool_calls",
            f"turn {index + 1} has bad tool_calls",
            "a list, in an assistant turn",
            (*at, "tool_calls"),
        )
    elif calls:
        yield from _calls(calls, at, index)
        if message.get("content") in (None, ""):  # the calls are what it says
            return
    if "content" not in message:
        yield Fault(
            "no_content", f"turn {index + 1} ({message['role']}) has no content", "add content", at
        )
        return
    yield from text_faults(message["content"], (*at, "content"), f"the content of turn {index + 1}")


def _calls(calls: list[Any], at: JsonPath, index: int) -> Iterator[Fault]:
    for number, call in enumerate(calls):
        where = (*at, "tool_calls", number)
        said = f"call {number + 1} of turn {index + 1}"
        if not _names_function(call):
            fix = 'write {"type": "function", "function": {"name": "…", "arguments": "{…}"}}'
            yield Fault("tool_calls", f"{said} names no function", fix, where)
        elif not _is_object(call.get("function", call).get("arguments", {})):
            fix = "write a JSON object, or one as text"
            yield Fault("tool_calls", f"the arguments of {said} are no JSON object", fix, where)


def _is_object(arguments: Any) -> bool:
    """Whether arguments are an object, or the text of one, as OpenAI's rows have it."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return False
    return isinstance(arguments, dict)


_NEXT = {
    "start": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


def _order(messages: list[dict[str, Any]]) -> Iterator[Fault]:
    before = "start"
    for index, message in enumerate(messages):
        role = message["role"]
        allowed = _NEXT[before]
        if before == "assistant" and not messages[index - 1].get("tool_calls"):
            allowed = ("user",)
        if role not in allowed:
            where = "opens the conversation" if before == "start" else f"follows {before}"
            fix = f"expected {' or '.join(allowed)} here"
            yield Fault("order", f"turn {index + 1} ({role}) {where}", fix, ("messages", index))
            return
        before = role
    last = len(messages) - 1
    if before != "assistant":
        fix = "end with the answer that is to be learned"
        yield Fault("order", f"the last turn is {before}", fix, ("messages", last))
    elif not trained_turns({"messages": messages}):
        fix = "give at least one assistant turn the weight 1"
        yield Fault(
            "weight",
            "every assistant turn has weight 0: nothing would be trained",
            fix,
            ("messages", last),
        )


def trained_turns(row: dict[str, Any]) -> int:
    """Assistant turns that carry loss."""
    messages = row["messages"]
    return sum(m["role"] == "assistant" and m.get("weight", 1) != 0 for m in messages)
