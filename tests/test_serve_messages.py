"""Anthropic's Messages API by Anthropic's own client against a real server."""

import json

import anthropic
import pytest
from chat_models import chat_model
from tokenizers import Tokenizer

from bench.serve.server import serving
from tenfold.serve.api.keys import make_key

TOOL = {"name": "weather", "description": "The weather.", "input_schema": {
    "type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"], "additionalProperties": False,
}}  # fmt: skip
HELLO = [{"role": "user", "content": "Hello there"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return chat_model(tmp_path_factory.mktemp("messages") / "tiny", context=1024)


@pytest.fixture(scope="module")
def client(model):
    key = make_key(model.parent / "keys.json", "ann")
    asked = ("--kv-cache-gib", "0.05", "--threads", "1", "--feedback", "", "--keys", model.parent / "keys.json")
    with serving(model, *asked) as (url, _):
        yield anthropic.Anthropic(base_url=url, api_key=key, max_retries=0, _strict_response_validation=True)


def whole_and_streamed(client, **asked):
    asked = {"model": "tiny", "messages": HELLO, "max_tokens": 12, "extra_body": {"temperature": 0}} | asked
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        last = stream.get_final_message()
    assert text == "".join(block.text for block in whole.content if block.type == "text")
    assert [b.model_dump(exclude={"id"}) for b in last.content] == [b.model_dump(exclude={"id"}) for b in whole.content]
    assert (last.stop_reason, last.stop_sequence) == (whole.stop_reason, whole.stop_sequence)
    used = [m.usage.input_tokens + m.usage.cache_read_input_tokens for m in (whole, last)]
    assert used[0] == used[1] and last.usage.output_tokens == whole.usage.output_tokens
    return whole


def test_a_message_is_the_same_streamed_and_whole(client):
    message = whole_and_streamed(client)
    assert message.stop_reason == "max_tokens" and message.usage.output_tokens == 12
    count = client.messages.count_tokens(model="tiny", messages=HELLO).input_tokens
    assert count == message.usage.input_tokens + message.usage.cache_read_input_tokens
    text = message.content[0].text
    cut = whole_and_streamed(client, stop_sequences=["nowhere", text[3:5]])
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", text[3:5])
    assert "".join(block.text for block in cut.content) == text[: text.index(text[3:5])]


def test_a_prompt_that_is_longer_than_the_context_is_counted_and_not_answered(client, model):
    said = "Hello there, how are you?\n" * 2000
    prompt = f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n"
    expected = len(Tokenizer.from_file(str(model / "tokenizer.json")).encode(prompt, add_special_tokens=False).ids)
    asked = {"model": "tiny", "messages": [{"role": "user", "content": said}]}
    assert client.messages.count_tokens(**asked).input_tokens == expected > 2 * 1024
    with pytest.raises(anthropic.BadRequestError, match="too many for the context of 1024"):
        client.messages.create(**asked, max_tokens=1)


def test_tools_are_called_and_what_they_gave_is_read(client):
    called = whole_and_streamed(client, tools=[TOOL], tool_choice={"type": "tool", "name": "weather"}, max_tokens=100)
    (call,) = called.content
    assert called.stop_reason == "tool_use" and (call.type, call.name) == ("tool_use", "weather")
    assert call.input["city"] in ("Paris", "Rome") and call.id.startswith("toolu_")

    def history(result):
        given = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": result}]}
        turns = [{"role": "assistant", "content": [call.model_dump(include={"type", "id", "name", "input"})]}]
        return [*HELLO, *turns, {"role": "user", "content": [given, {"type": "text", "text": "Go on."}]}]

    counts = [client.messages.count_tokens(model="tiny", messages=history("sunny" * n), tools=[TOOL]).input_tokens for n in (1, 9)]
    assert counts[1] >= counts[0] + 8
    assert (
        client.messages.create(model="tiny", max_tokens=3, system="Be brief.", messages=history("sunny")).usage.output_tokens == 3
    )


@pytest.mark.parametrize("asked", [
    {"messages": [*HELLO, {"role": "assistant", "content": "I"}]},
    {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}]},
    {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
    {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}},
    {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    {"max_tokens": 5000},
])  # fmt: skip
def test_what_is_not_done_is_refused(client, asked):
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.messages.create(**{"model": "tiny", "messages": HELLO, "max_tokens": 3} | asked)
    error = json.loads(refused.value.response.text)["error"]
    assert error["message"].endswith(".") and error["type"] == "invalid_request_error"


def test_a_key_of_nobody_is_refused(client):
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="x").messages.create(model="tiny", messages=HELLO, max_tokens=3)
