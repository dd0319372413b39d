"""Items of OpenAI's responses and conversations: messages, function calls, their outputs, and summaries (compactions)."""

import base64
from typing import Any

from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.routes.answers import new_id

_ROLES = ("system", "developer", "user", "assistant")


def turns(value: str | list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """The chat messages of an input; no input is an empty user message. Successive calls go into one message."""
    if not isinstance(value, list):
        return [{"role": "user", "content": value or ""}]
    made: list[dict[str, Any]] = []
    calling = False  # whether the last item was a call
    for item in value:
        before, calling = calling, item.get("type") == "function_call"
        if calling and before:
            made[-1]["tool_calls"].append(_call(item))
        else:
            made.append(_turn(item))
    return made


def _turn(item: dict[str, Any]) -> dict[str, Any]:
    kind = item.get("type") or "message"
    if kind == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": [_call(item)]}
    if kind == "function_call_output":
        return {"role": "tool", "tool_call_id": str(item.get("call_id", "")), "content": item.get("output") or ""}
    if kind == "compaction":
        return {"role": "user", "content": f"Summary of the conversation before:\n{_summary(item)}"}
    if kind != "message":
        raise ApiError(400, f"Input of type {kind!r} cannot be read: send messages.", param="input")
    if item.get("role") not in _ROLES:
        raise ApiError(400, f"A message's role must be {', '.join(_ROLES)}, not {item.get('role')!r}.", param="input")
    return {"role": item["role"], "content": item.get("content") or ""}


def _call(item: dict[str, Any]) -> dict[str, Any]:
    function = {"name": str(item.get("name", "")), "arguments": str(item.get("arguments", ""))}
    return {"id": str(item.get("call_id", "")), "type": "function", "function": function}


def compaction(summary: str) -> dict[str, Any]:
    """An item that stands for a summarised conversation. The summary is in base64, since clients must return it unchanged."""
    return {"type": "compaction", "id": new_id("cmp"), "encrypted_content": base64.b64encode(summary.encode()).decode()}


def _summary(item: dict[str, Any]) -> str:
    try:
        return base64.b64decode(str(item.get("encrypted_content", "")), validate=True).decode()
    except ValueError:
        raise ApiError(
            400, "The encrypted_content of a compaction is not what /v1/responses/compact gave.", param="input"
        ) from None


def as_list(value: str | list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """An input as a list of items."""
    return value if isinstance(value, list) else [{"role": "user", "content": value}] if value else []


def stored(value: str | list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """An input as items that can be stored: each with an id of its own, a type, and its content in parts."""
    return [_stored(item) for item in as_list(value)]


def _stored(item: dict[str, Any]) -> dict[str, Any]:
    kind = item.get("type") or "message"
    kept = {**item, "id": new_id("msg" if kind == "message" else "fc"), "type": kind, "status": "completed"}
    content = item.get("content")
    if kind == "message" and isinstance(content, str):
        said = {"type": "output_text", "annotations": []} if item["role"] == "assistant" else {"type": "input_text"}
        kept["content"] = [{**said, "text": content}]
    return kept
