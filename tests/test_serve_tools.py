"""Streams of calls, read by OpenAI's own client, against whole answers."""

import json

import openai
import pytest
from scripted import Scripted, scripted_site

from tenfold.data.text.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def site():
    backend = Scripted(train_tokenizer(['hello {"name": "weather", "arguments": {"city": "Rome"}} <tool_call> ' * 20], 400))
    with scripted_site(backend) as url:
        yield backend, url


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
ROME, LIMA = ({"name": "weather", "arguments": {"city": city}} for city in ("Rome", "Lima"))
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Weather?"}]}
SAID = [
    "Let me see.\n" + "".join(f"<tool_call>\n{json.dumps(one)}\n</tool_call>\n" for one in (ROME, LIMA)),
    "; ".join(json.dumps(one) for one in (ROME, LIMA)),
    "<|python_tag|>" + json.dumps(ROME),
    'No tool, but {"name": "weather"} and <tool_call>{"name": "other", "arguments": {}}</tool_call>.',
    '{"name": "other", "arguments": {}}',
    "plain < text <tool_",
    '<tool_call>{"name": "weather", "arguments": {"city": "Ro',
    '<tool_call>{"name": "wea',
    "",
]


@pytest.mark.parametrize("says", SAID)
@pytest.mark.parametrize("finish", ["stop", "length"])
def test_openais_client_reads_the_same_of_a_stream_as_of_a_whole_answer(site, says, finish):
    backend, url = site
    backend.answers = [(says, finish)] * 2
    chats = openai.OpenAI(base_url=f"{url}/v1", api_key="none").chat.completions
    whole = chats.create(**ASK, tools=[TOOL])
    pieces, text, calls = list(chats.create(**ASK, tools=[TOOL], stream=True)), "", {}
    for choice in (chunk.choices[0] for chunk in pieces):
        text += choice.delta.content or ""
        for call in choice.delta.tool_calls or ():
            name, arguments = calls.get(call.index, ("", ""))
            calls[call.index] = name + (call.function.name or ""), arguments + call.function.arguments
    message = whole.choices[0].message
    assert text == (message.content or "") and pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert list(calls.values()) == [(c.function.name, c.function.arguments) for c in message.tool_calls or ()]
    if len(calls) == 2:
        assert [json.loads(arguments) for _, arguments in calls.values()] == [ROME["arguments"], LIMA["arguments"]]
        assert whole.choices[0].finish_reason == "tool_calls"
        assert sum(bool(c.choices[0].delta.tool_calls) for c in pieces) > 6  # they come while they are written
    if not calls:
        assert text == says and whole.choices[0].finish_reason == finish


@pytest.mark.parametrize("says", SAID)
def test_responses_and_their_events_hold_the_same_items(site, says):
    backend, url = site
    backend.answers = [(says, "stop")] * 2
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    ask = {"model": "tiny", "input": "Weather?", "tools": [{"type": "function", **TOOL["function"]}]}
    whole = client.responses.create(**ask)
    with client.responses.stream(**ask) as stream:  # which makes a response of the events, and fails on those out of order
        events = list(stream)
        last = stream.get_final_response()
    assert [e.sequence_number for e in events] == list(range(len(events)))
    kept = [[item.model_dump(exclude={"id", "call_id", "parsed_arguments"}) for item in r.output] for r in (whole, last)]
    for item in kept[1]:
        for part in item.get("content", ()):
            part.pop("parsed", None)
    assert kept[0] == kept[1]
    for at, item in enumerate(last.output):
        kind = "response.output_text.delta" if item.type == "message" else "response.function_call_arguments.delta"
        deltas = "".join(e.delta for e in events if e.type == kind and e.output_index == at)
        assert deltas == (item.content[0].text if item.type == "message" else item.arguments)
