"""Writes the events of a streamed response of OpenAI's Responses API, and collects its output items."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tenfold.serve.api.routes.answers import new_id
from tenfold.serve.api.tool_parser import Arguments, CallBegins, Piece, Said


@dataclass
class Writer:
    """Makes the numbered events of one response; `output` has its items so far: messages and function calls."""

    output: list[dict[str, Any]] = field(default_factory=list)
    is_open: bool = False  # whether the last item is unfinished
    _number: int = 0

    def event(self, kind: str, **more: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": f"response.{kind}", "sequence_number": self._number - 1, **more}

    @property
    def _here(self) -> dict[str, Any]:
        """The fields of an event that identify the last item, and for a message its only part."""
        item = self.output[-1]
        there = {"item_id": item["id"], "output_index": len(self.output) - 1}
        return there | {"content_index": 0} if item["type"] == "message" else there

    def _open(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self.close()
        self.output.append(item)
        self.is_open = True
        yield self.event("output_item.added", output_index=len(self.output) - 1, item=copy.deepcopy(item))

    def open_message(self) -> Iterator[dict[str, Any]]:
        """Begin a message, if none is open."""
        if not (self.is_open and self.output[-1]["type"] == "message"):
            message = {"type": "message", "role": "assistant", "content": []}
            yield from self._open({"id": new_id("msg"), "status": "in_progress", **message})
            part = {"type": "output_text", "text": "", "annotations": []}
            self.output[-1]["content"].append(part)
            yield self.event("content_part.added", **self._here, part=dict(part))

    def write(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """The events for a piece of the answer."""
        match piece:
            case Said(text):
                yield from self.open_message()
                self.output[-1]["content"][0]["text"] += text
                yield self.event("output_text.delta", **self._here, delta=text, logprobs=[])
            case CallBegins(_, name, function):
                call = {"type": "function_call", "call_id": name, "name": function, "arguments": ""}
                yield from self._open({"id": new_id("fc"), "status": "in_progress", **call})
            case Arguments(_, text):
                self.output[-1]["arguments"] += text
                yield self.event("function_call_arguments.delta", **self._here, delta=text)

    def close(self, status: str = "completed") -> Iterator[dict[str, Any]]:
        """End the open item, if there is one."""
        if not self.is_open:
            return
        item, self.is_open = self.output[-1], False
        item["status"] = status
        if item["type"] == "message":
            yield self.event("output_text.done", **self._here, text=item["content"][0]["text"], logprobs=[])
            yield self.event("content_part.done", **self._here, part=item["content"][0])
        else:
            said = {"name": item["name"], "arguments": item["arguments"]}
            yield self.event("function_call_arguments.done", **self._here, **said)
        yield self.event("output_item.done", output_index=len(self.output) - 1, item=item)
