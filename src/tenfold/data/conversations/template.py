"""Chat templates: the text of a conversation, as `transformers` renders it."""

import json
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tenfold.spec.errors import TenfoldError


def render(template: str, messages: list[dict[str, Any]], special: Mapping[str, str], **more: Any) -> str:
    """Render `messages`; `special` maps `bos_token` and the like to their texts. Raises TenfoldError if the template refuses or
    fails."""
    try:
        return _compiled(template).render(messages=messages, **special, **more)
    except TemplateRefusal as error:
        raise TemplateRefusal(f"The model's chat template refuses this conversation: {error}") from None
    except Exception as error:  # a template may fail in any way
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise TenfoldError(f"The model's chat template failed on this conversation: {reason.rstrip('.')}.") from None


class TemplateRefusal(TenfoldError):
    """A template refused a conversation by calling `raise_exception`."""


def _refuse(message: str) -> None:
    raise TemplateRefusal(message)


class _Generation(Extension):
    """`{% generation %}` marks what the assistant wrote, for training. The marks are ignored, and the text between them is kept."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja2 declares it)

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


@lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    # As in transformers: a sandbox, in which a template can neither reach Python nor change its arguments.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)
