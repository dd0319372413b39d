"""Turns a conversation into a model's prompt, with tools and images, also for templates that do not support tools."""

import base64
import re
import secrets
import threading
from collections.abc import Callable
from typing import Any

from tenfold.data.images.tiles import open_image
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.protocol import ImageUrl, Message, Part, TemplateFields
from tenfold.serve.api.served_model import ServedModel
from tenfold.serve.api.tools import as_object, calls_as_text, tell_of_tools
from tenfold.serve.pictures import Prompt, View
from tenfold.spec.errors import TenfoldError

_TEXTS, _PICTURES = ("text", "refusal", "input_text", "output_text"), ("image_url", "input_image")
_OPENING = threading.Lock()  # decode one image at a time: that takes far more memory than the file and the tiles


def address(part: Part) -> str:
    """The data URL of an image part. Raises ApiError if it has none."""
    url = part.image_url.url if isinstance(part.image_url, ImageUrl) else part.image_url
    if not re.match("data:[^,]*;base64,", url or "", re.IGNORECASE):
        message = "Send pictures as data URLs (data:image/png;base64,...): they are not fetched from addresses or by ids."
        raise ApiError(400, message, param="messages")
    return url or ""


def plain(message: Message, see: Callable[[Part], str] = address) -> dict[str, Any]:
    """A message for a chat template, with text as its content; `see` gives the text in place of an image part."""
    plain = message.model_dump(exclude_none=True)
    if plain["role"] == "developer":
        plain["role"] = "system"
    content = message.content or ""
    plain["content"] = content if isinstance(content, str) else "".join(_text(part, see) for part in content)
    for call in plain.get("tool_calls", ()):  # templates expect objects, and would write a string in quotes
        call["function"]["arguments"] = as_object(call["function"]["arguments"])
    return plain


def _text(part: Part, see: Callable[[Part], str]) -> str:
    if part.type in _PICTURES:
        return see(part)
    if part.type not in _TEXTS:
        raise ApiError(400, f"Content of type {part.type!r} cannot be read: send text or pictures.", param="messages")
    text = part.refusal if part.type == "refusal" else part.text
    if text is None:
        raise ApiError(400, f"Content of type {part.type!r} has no text.", param="messages")
    return text


class Pictures:
    """The images of one request. In its text, each is replaced by a random mark, which no client can guess and write."""

    def __init__(self, model: ServedModel):
        self._model = model
        self._views: dict[str, View] = {}  # by their marks

    def mark(self, part: Part) -> str:
        """Read an image and return its mark. Raises ApiError or TenfoldError if it cannot be read, or the model takes no images."""
        model, number = self._model, len(self._views) + 1
        data = address(part).partition(",")[2]
        if model.sight is None:
            message = f"{model.name} reads text alone, since it or its backend takes no pictures: leave them out."
            raise ApiError(400, message, param="messages")
        if number > model.limits.max_images:
            raise ApiError(400, f"A request may have at most {model.limits.max_images} pictures.", param="messages")
        try:
            stored = base64.b64decode(data, validate=True)
        except ValueError:
            raise ApiError(400, f"Picture {number} is not valid base64.", param="messages") from None
        with _OPENING:
            image = open_image(stored, f"Picture {number}", model.limits.max_image_pixels)
            view = model.sight.view(image, model.text, 1 if part.is_coarse else None)
        mark = secrets.token_hex(16)
        self._views[mark] = view
        return mark

    def prompt(self, text: str, ids: Callable[[str], list[int]]) -> Prompt:
        """The tokens of a rendered conversation, whose texts have the tokens `ids`.

        Raises TenfoldError unless the template has written each mark once, in order.
        """
        if not self._views or self._model.sight is None:
            return Prompt(ids(text))
        pieces = re.split(f"({'|'.join(self._views)})", text)
        if pieces[1::2] != list(self._views):
            raise TenfoldError("The model's chat template does not write each picture once and in order: send text alone.")
        return self._model.sight.prompt([ids(piece) for piece in pieces[::2]], list(self._views.values()))


async def chat_prompt(
    model: ServedModel,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]],
    pictures: Pictures,
    form: TemplateFields,
    counts: bool = False,
) -> Prompt:
    """The prompt of a conversation with tools and tool calls, which are written as text if the template does not support them.

    If the answer continues the last message, that message is not closed. With `counts` the prompt gets no answer, and may be longer
    than the context. Raises ApiError or TenfoldError.
    """
    _check_continues(form, messages)
    messages = model.text.said(messages)
    if tools and not model.text.knows_tools:
        messages, tools = tell_of_tools(messages, tools), []
    if not model.text.knows_calls:
        messages = calls_as_text(messages)
    variables = {**(form.chat_template_kwargs or {}), "tools": tools or None}
    if form.add_generation_prompt is not None:
        variables["add_generation_prompt"] = form.add_generation_prompt
    text = await model.chat_text(messages, variables, continues=bool(form.continue_final_message))
    return await model.prompt(lambda: pictures.prompt(text, model.text.counted_ids if counts else model.text.ids))


def _check_continues(form: TemplateFields, messages: list[dict[str, Any]]) -> None:
    """Raises ApiError if the answer is to continue the last message, but cannot."""
    if not form.continue_final_message:
        return
    if form.add_generation_prompt:
        message = "add_generation_prompt begins an answer and continue_final_message goes on with one: give one of them."
        raise ApiError(400, message, param="add_generation_prompt")
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"]:
        message = "continue_final_message needs a last message of the assistant, with text."
        raise ApiError(400, message, param="continue_final_message")
