"""Parses tool calls in an answer incrementally, for streamed and for whole answers.

Known forms are JSON between <tool_call> tags (Hermes, Qwen), and answers that begin with JSON, or with <|python_tag|> and JSON, for
one call or several with `;` between them (Llama 3). JSON is a call if its `name` is that of a known function; its `arguments` or
`parameters` may be missing.
"""

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

_OPEN, _CLOSE, _PYTHON = "<tool_call>", "</tool_call>", "<|python_tag|>"
_BETWEEN = re.compile(rf"(?:[\s;]|{_CLOSE})*")  # between a call and what follows
_SIGN = re.compile(r'\\.|\\\Z|["{}\[\]]', re.DOTALL)  # the characters that change the depth in JSON, and escapes
_HEAD = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*', re.DOTALL)


class Said(NamedTuple):
    """More text of the answer."""

    text: str


class CallBegins(NamedTuple):
    """The beginning of a call, whose arguments follow; `number` counts the calls of an answer from 0."""

    number: int
    id: str
    name: str


class Arguments(NamedTuple):
    """More of the arguments of call `number`, as the model writes them."""

    number: int
    text: str


Piece = Said | CallBegins | Arguments


@dataclass
class Call:
    """A call so far; it is `whole` once its arguments are complete."""

    id: str
    name: str
    arguments: str = ""
    whole: bool = False

    def written(self) -> dict[str, Any]:
        """The call in the form of chat completions."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass
class _Object:
    """JSON that may be a call, after the text `mark` that introduced it. Each character is scanned once."""

    mark: str
    seen: str = ""
    depth: int = 0
    in_string: bool = False
    escaped: bool = False  # whether the next character follows a backslash
    nested: bool = False  # whether a nested object or list has begun
    call: Call | None = None

    def depths(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield for each bracket in further `text` the index after it, and the depth from there on."""
        last = ""
        for sign in _SIGN.finditer(text, int(self.escaped)):
            last = sign[0]
            if last == '"':
                self.in_string = not self.in_string
            elif last[0] != "\\" and not self.in_string:
                self.depth += 1 if last in "{[" else -1
                yield sign.end(), self.depth
        self.escaped = last == "\\"


class ToolParser:
    """Parses one answer, with calls of the functions `names`; without names, all of it is text.

    Only the first `most` calls count. `content` and `calls` are what has been parsed so far.
    """

    def __init__(self, names: set[str], most: int | None = None):
        self.content = ""
        self.calls: list[Call] = []
        self._names, self._most = names, most
        self._held = ""
        self._object = _Object("")
        self._state = self._start if names else self._plain

    def push(self, text: str) -> Iterator[Piece]:
        """Parse more of the answer's text, and yield the new pieces that are certain."""
        self._held += text
        before = None
        while self._held and self._state != before:
            before = self._state
            yield from before()

    def end(self) -> Iterator[Piece]:
        """Yield what was held back, at the end of the answer."""
        text, self._held = self._held, ""
        if self._state == self._after and _CLOSE.startswith(text):
            return
        if self._state in (self._tagged, self._json) and self._object.call is None:
            text = self._object.mark + self._object.seen + text
        yield from self._say(text)

    def _say(self, text: str) -> Iterator[Piece]:
        if text:
            self.content += text
            yield Said(text)

    def _plain(self) -> Iterator[Piece]:
        """State: the answer can have no calls."""
        text, self._held = self._held, ""
        return self._say(text)

    def _start(self) -> Iterator[Piece]:
        """State: the beginning of the answer, which may be JSON."""
        text = self._held.lstrip()
        json_text = text.removeprefix(_PYTHON).lstrip()
        if json_text.startswith("{"):
            self._state = self._json
            self._object, self._held = _Object(self._held[: -len(json_text)]), json_text
        elif text and not _PYTHON.startswith(text) and (json_text or not text.startswith(_PYTHON)):
            self._state = self._text
        yield from ()

    def _text(self) -> Iterator[Piece]:
        """State: text up to the next tag, without an end that may be the beginning of a tag."""
        said, tag, rest = self._held.partition(_OPEN)
        if not tag:
            kept = next((k for k in range(len(_OPEN) - 1, 0, -1) if said.endswith(_OPEN[:k])), 0)
            said, rest = said[: len(said) - kept], said[len(said) - kept :]
        is_blank = not self.content and not said.strip()  # white space before the first call is not part of the text
        if tag:
            self._state, self._object = self._tagged, _Object(said * is_blank + tag)
        elif is_blank:
            return iter(())
        self._held = rest
        return self._say("" if is_blank else said)

    def _tagged(self) -> Iterator[Piece]:
        """State: after a tag. JSON must follow, otherwise the tag was text."""
        text = self._held.lstrip()
        if text.startswith("{"):
            self._object.mark += self._held[: -len(text)]
            self._state, self._held = self._json, text
        elif text:
            self._state = self._text
            return self._say(self._object.mark)
        return iter(())

    def _json(self) -> Iterator[Piece]:
        """State: JSON up to its end. Arguments are given out as they come if the name came before them, else at the end."""
        text, self._held, begin, found = self._held, "", 0, self._object
        for end, depth in found.depths(text):
            if depth == 2 and not found.nested:
                found.nested, begin = True, end - 1
                yield from self._begin(_name(found.seen + text[:begin]))
            elif depth == 1 and found.call and not found.call.whole:
                yield from self._argue(text[begin:end])
                found.call.whole = True
            elif depth == 0:
                found.seen, self._held = found.seen + text[:end], text[end:]
                yield from self._end_json()
                return
        found.seen += text
        if found.call and not found.call.whole:
            yield from self._argue(text[begin:])

    def _end_json(self) -> Iterator[Piece]:
        """At the end of JSON: it is a call, or text."""
        found = self._object
        if found.call is None:
            name, arguments = _call_of(found.seen)
            yield from self._begin(name)
            yield from self._argue(arguments)
        if found.call:
            found.call.whole, self._state = True, self._after
        else:
            self._state = self._text
            yield from self._say(found.mark + found.seen)

    def _after(self) -> Iterator[Piece]:
        """State: after a call. Its closing tag, another call or text may follow."""
        text = self._held = _BETWEEN.sub("", self._held, count=1)
        if text.startswith("{") and _OPEN not in self._object.mark:
            self._state, self._object = self._json, _Object("")
        elif not (_OPEN.startswith(text) or _CLOSE.startswith(text)):
            self._state = self._text
        yield from ()

    def _begin(self, name: str | None) -> Iterator[Piece]:
        """Begin a call if there is a function of this name; it counts if it is among the first `most`."""
        if name not in self._names:
            return
        self._object.call = call = Call(f"call_{uuid.uuid4().hex[:24]}", str(name))
        if self._most is None or len(self.calls) < self._most:
            self.calls.append(call)
            yield CallBegins(len(self.calls) - 1, call.id, call.name)

    def _argue(self, text: str) -> Iterator[Piece]:
        """More of the arguments of the call, if there is one."""
        if text and (call := self._object.call):
            call.arguments += text
            if self.calls and self.calls[-1] is call:
                yield Arguments(len(self.calls) - 1, text)


def _name(head: str) -> str | None:
    """The name in the beginning of a call, `head`, after which its arguments follow."""
    found = _HEAD.fullmatch(head)
    return _parsed(found[1]) if found else None


def _call_of(text: str) -> tuple[str | None, str]:
    """The name and the arguments of a call whose fields come in any order; None as the name if `text` is not a call."""
    value = _parsed(text)
    if not isinstance(value, dict) or not isinstance(name := value.get("name"), str):
        return None, ""
    arguments = value.get("arguments", value.get("parameters", {}))
    return name, arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
