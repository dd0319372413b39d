"""Tools and tool calls as text, for models whose chat template does not support them, and JSON schemas of calls."""

import json
from typing import Any

_TELL = (
    "You can call functions. To call one, answer with nothing but\n<tool_call>\n"
    '{"name": "the function", "arguments": {...}}\n</tool_call>\nThe functions, as JSON:\n'
)


def tell_of_tools(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation with the tools described in its system message."""
    described = _TELL + "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{described}"}, *messages[1:]]
    return [{"role": "system", "content": described}, *messages]


def calls_as_text(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation with its tool calls and their results as text, in the form that `tell_of_tools` asks for."""
    turns: list[dict[str, Any]] = []
    answering = False  # whether the last message holds results of calls
    for message in messages:
        before, answering = answering, message["role"] in ("tool", "function")
        if answering:
            result = f"<tool_response>\n{message['content']}\n</tool_response>"
            result = f"{turns.pop()['content']}\n{result}" if before else result
            turns.append({"role": "user", "content": result})
        elif calls := message.get("tool_calls"):
            written = [json.dumps(call["function"], ensure_ascii=False) for call in calls]
            parts = [message["content"], *(f"<tool_call>\n{one}\n</tool_call>" for one in written)]
            turns.append({"role": "assistant", "content": "\n".join(filter(None, parts))})
        else:
            turns.append(message)
    return turns


def as_object(arguments: str) -> Any:
    """The object of a call's arguments, which clients send as a JSON string; a string that is not a JSON object stays a string."""
    try:
        value = json.loads(arguments or "{}")
    except ValueError:
        return arguments
    return value if isinstance(value, dict) else arguments


def call_schema(tools: list[dict[str, Any]], name: str | None = None) -> dict[str, Any]:
    """The JSON schema of a call of any of the tools, or of the one named `name`."""
    choices = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                "arguments": tool["function"].get("parameters") or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
        if name in (None, tool["function"]["name"])
    ]
    return choices[0] if len(choices) == 1 else {"anyOf": choices}
