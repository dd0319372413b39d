"""What agents send and read: tools, calls of earlier turns under any template, and fields that are refused instead of ignored."""

import json
import re

import pytest
from chat_models import TEMPLATE
from fastapi.testclient import TestClient
from scripted import Scripted
from transformers.utils.chat_template_utils import render_jinja_template

from tenfold.data.text.tokenizer import train_tokenizer
from tenfold.serve.api.app import make_app
from tenfold.serve.api.models import Models
from tenfold.serve.api.protocol import Message
from tenfold.serve.api.routes.chat import plain
from tenfold.serve.backends.backend import BackendStopped
from tenfold.serve.options import EngineOptions, ServerOptions
from tenfold.serve.request import Output
from tenfold.serve.text import PLAIN_TEMPLATE, TextSide

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALLS = [
    {"id": f"c{i}", "type": "function", "function": {"name": "weather", "arguments": json.dumps({"city": city})}}
    for i, city in enumerate(("Zürich", 'a "quoted" town'))
]
HISTORY = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "c0", "content": "sunny in Z"},
    {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "rain in a"}]},
    {"role": "user", "content": "Thanks."},
]
# As the templates of Llama 3.1 and of Qwen3-Coder write calls.
WITH_CALLS = """{% for m in messages %}{% if m.tool_calls %}{% for c in m.tool_calls %}{{ '{"name": "' + c.function.name + '", ' }}
{{- '"parameters": ' }}{{ c.function.arguments | tojson }}{{ '}' }}{% endfor %}{% else %}{{ m.role }}: {{ m.content }}
{% endif %}{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"""
WALKS = """{% for m in messages %}{% for c in m.tool_calls or [] %}{% for k, v in c.function.arguments.items() %}
<parameter={{ k }}>{{ v }}</parameter>{% endfor %}{% endfor %}{{ m.role }}: {{ m.content }}{% endfor %}{{ tools or '' }}"""


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["hello there, how are you today? " * 20], 300)


@pytest.fixture
def open_site(tokenizer, tmp_path):
    opened = []

    def make(template=TEMPLATE):
        backend = Scripted(tokenizer)

        async def load(_):
            return TextSide(tokenizer, template, frozenset(), {}, [], 40, 4096), backend

        app = make_app(Models({"tiny": EngineOptions(tmp_path)}, ServerOptions().limits, load=load), ServerOptions())
        client = TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
        opened.append(client.__enter__())
        return client, backend

    yield make
    for client in opened:
        client.__exit__(None, None, None)


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, TEMPLATE, WITH_CALLS, WALKS])
def test_calls_of_earlier_turns_and_what_they_gave_are_in_the_prompt(open_site, template):
    client, backend = open_site(template)
    for tools in ([TOOL], None):
        body = {"messages": HISTORY, "tools": tools, "max_tokens": 3}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        prompt = backend.asked[-1]
        assert "Zürich" in prompt and re.search(r'a \\?"quoted\\?" town', prompt)
        assert "sunny in Z" in prompt and "rain in a" in prompt and '\\\\"' not in prompt
        assert prompt.index("Weather?") < prompt.index("Zürich") < prompt.index("sunny in Z") < prompt.index("Thanks.")
        assert ('"weather"' in prompt.replace("'", '"')) or template is WALKS


@pytest.mark.parametrize("template", [WITH_CALLS, WALKS])
def test_a_template_that_knows_calls_is_rendered_as_by_transformers(open_site, template):
    client, backend = open_site(template)
    client.post("/v1/chat/completions", json={"messages": HISTORY, "max_tokens": 3})
    parsed = json.loads(json.dumps(HISTORY))
    for call in parsed[1]["tool_calls"]:
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    parsed[1]["content"], parsed[3]["content"] = "", "rain in a"
    expected, _ = render_jinja_template([parsed], chat_template=template, add_generation_prompt=True)
    assert backend.asked == expected


@pytest.mark.parametrize("template", [WITH_CALLS, WALKS, PLAIN_TEMPLATE])
def test_an_answer_that_continues_gets_the_prompt_of_transformers(open_site, template):
    client, backend = open_site(template)
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "how are"}]
    body = {"messages": messages, "continue_final_message": True, "max_tokens": 3}
    assert client.post("/v1/chat/completions", json=body).status_code == 200
    expected, _ = render_jinja_template([messages], chat_template=template, continue_final_message=True)
    assert backend.asked == expected and expected[0].endswith("how are")
    for wrong in (
        {"add_generation_prompt": True},
        {"messages": messages[:1]},
        {"messages": [*messages[:1], {"role": "assistant", "content": ""}]},
        {"store": True},
    ):
        assert client.post("/v1/chat/completions", json={**body, **wrong}).status_code == 400


@pytest.mark.parametrize("template", [WITH_CALLS, WALKS])
@pytest.mark.parametrize("begins", [None, True, False])
def test_tokens_of_a_conversation_are_those_of_its_prompt(open_site, template, begins):
    template += "{{ hint }}{% if add_generation_prompt %}assistant:{% endif %}"
    client, _ = open_site(template)
    asked = {"messages": HISTORY[-1:], "tools": [TOOL], "chat_template_kwargs": {"hint": "hint"}, "add_generation_prompt": begins}
    tokens = client.post("/tokenize", json={**asked, "return_token_strs": True}).json()
    text = client.post("/detokenize", json={"tokens": tokens["tokens"]}).json()["prompt"]
    expected, _ = render_jinja_template(
        [HISTORY[-1:]], tools=[TOOL], chat_template=template, add_generation_prompt=begins is not False, hint="hint"
    )
    assert text == expected[0] and len(tokens["token_strs"]) == tokens["count"] == len(tokens["tokens"])
    said = {"messages": [*HISTORY[-1:], {"role": "assistant", "content": "how"}], "continue_final_message": True}
    tokens = client.post("/tokenize", json=said).json()["tokens"]
    expected, _ = render_jinja_template([said["messages"]], chat_template=template, continue_final_message=True)
    assert client.post("/detokenize", json={"tokens": tokens}).json()["prompt"] == expected[0]


def test_what_is_far_too_long_for_the_context_is_not_counted(open_site):
    client, _ = open_site("{% for m in messages %}{{ m.content * 100 }}{% endfor %}")
    for characters, status in ((1000, 200), (30_000, 400)):
        answer = client.post("/v1/messages/count_tokens", json={"messages": [{"role": "user", "content": "a" * characters}]})
        assert answer.status_code == status
    assert "too many for the context" in answer.json()["error"]["message"]


def test_thoughts_of_earlier_turns_reach_a_template_that_writes_them(open_site):
    client, _ = open_site("{% for m in messages %}{{ m.role }} {{ m.reasoning_content }} {{ m.content }}\n{% endfor %}")
    turn = {
        "role": "assistant",
        "content": [{"type": "thinking", "thinking": "a b", "signature": ""}, {"type": "text", "text": "c"}],
    }
    counts = [
        client.post("/v1/messages/count_tokens", json={"messages": [user, {**turn, "content": content}, user]}).json()[
            "input_tokens"
        ]
        for user in ({"role": "user", "content": "hello"},)
        for content in (turn["content"], "c")
    ]
    assert counts[0] > counts[1]


def test_variables_reach_the_template_and_cannot_replace_the_conversation(open_site):
    client, backend = open_site("{{ messages[0].content }}|{{ enable_thinking }}|{{ tools }}")
    for variables, status in (
        ({"enable_thinking": False}, 200),
        ({"tools": "x"}, 200),
        ({"messages": []}, 400),
        ({"special": {}}, 400),
    ):
        answer = client.post("/v1/chat/completions", json={**HELLO, "chat_template_kwargs": variables, "max_tokens": 1})
        assert answer.status_code == status, answer.text
    assert backend.asked == ["hello|False|None", "hello||None"]


@pytest.mark.parametrize("arguments", ["", "{}", "[1]", "no JSON", '{"a": {"b": [1]}}', '"{}"'])
def test_arguments_are_objects_where_they_can_be(arguments):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    (made,) = plain(Message.model_validate({"role": "assistant", "tool_calls": [call]}))["tool_calls"]
    expected = json.loads(arguments or "{}") if arguments.startswith("{") or not arguments else arguments
    assert made["function"]["arguments"] == expected


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("parallel", [None, False])
def test_calls_come_beside_each_other_unless_that_is_not_wanted(open_site, stream, parallel):
    client, backend = open_site()
    backend.says = "Let me see.\n" + "".join(
        f'<tool_call>\n{{"name": "weather", "arguments": {{"city": "{c}"}}}}\n</tool_call>\n' for c in ("Rome", "Lima")
    )
    body = {"messages": HISTORY[:1], "tools": [TOOL], "parallel_tool_calls": parallel, "stream": stream}
    answer = client.post("/v1/chat/completions", json=body)
    if stream:
        chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", ())]
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
        begun = [call for call in calls if "id" in call]
        assert [call["index"] for call in begun] == list(range(len(begun)))
        for call in begun:
            parts = [other["function"]["arguments"] for other in calls if other["index"] == call["index"]]
            call["function"]["arguments"] = "".join(parts)
        calls = begun
        assert [c["choices"][0]["finish_reason"] for c in chunks][-1] == "tool_calls"
    else:
        (choice,) = answer.json()["choices"]
        calls, text = choice["message"]["tool_calls"], choice["message"]["content"]
        assert choice["finish_reason"] == "tool_calls"
    cities = [json.loads(call["function"]["arguments"])["city"] for call in calls]
    assert cities == (["Rome"] if parallel is False else ["Rome", "Lima"]) and text.strip() == "Let me see."
    assert len({call["id"] for call in calls}) == len(calls)


CHAT, PLAIN, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}
REFUSED = [
    (PLAIN, {"prompt": "a", "best_of": 3}, "best_of"),
    (PLAIN, {"prompt": "a", "use_beam_search": True}, "use_beam_search"),
    (PLAIN, {"prompt": "a", "stop_token_ids": [1]}, "stop_token_ids"),
    (PLAIN, {"prompt": "a", "n_predict": 5}, "n_predict"),
    (CHAT, {**HELLO, "xtc_probability": 0.5}, "xtc_probability"),
    (CHAT, {**HELLO, "web_search_options": {"search_context_size": "low"}}, "web_search_options"),
    ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    (PLAIN, {"prompt": {"id": "x"}}, "prompt"),
    (CHAT, {**HELLO, "function_call": {"name": "f"}}, "function_call"),
    (CHAT, {**HELLO, "tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools.0.type"),
    (CHAT, {**HELLO, "modalities": ["text", "audio"]}, "modalities.1"),
    (CHAT, {**HELLO, "response_format": {"type": "xml"}}, "response_format.type"),
    (CHAT, {**HELLO, "tools": [TOOL], "tool_choice": {"type": "function", "function": "weather"}}, "tool_choice.function"),
    (CHAT, {**HELLO, "tools": [TOOL], "tool_choice": "weather"}, "tool_choice"),
    (CHAT, {**HELLO, "chat_template": "x"}, "chat_template"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages.0.content.0.text"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, "messages"),
    (RESPONSES, {"input": "a", "prompt": {"id": "x"}}, "prompt"),
    (RESPONSES, {"input": "a", "top_logprobs": 3}, "top_logprobs"),
    (RESPONSES, {"input": "a", "text": {"format": {"type": "xml"}}}, "text.format.type"),
    ("/v1/embeddings", {"input": "a", "dimensions": 10**9}, "dimensions"),
    ("/tokenize", {**HELLO, "chat_template": "x"}, "chat_template"),
    ("/tokenize", {**HELLO, "add_special_tokens": True}, "add_special_tokens"),
    ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
    ("/v1/responses/compact", {"input": "a", "background": True}, "background"),
]


@pytest.mark.parametrize(("path", "body", "field"), REFUSED)
def test_what_is_not_done_is_refused_by_its_field(open_site, path, body, field):
    client, backend = open_site()
    answer = client.post(path, json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == field and not backend.asked
    assert error["message"].endswith(".") and "\n" not in error["message"]


def test_an_error_says_what_would_be_right(open_site):
    client, _ = open_site()
    said = client.post(CHAT, json={**HELLO, "tools": [TOOL], "tool_choice": "weather"}).json()["error"]["message"]
    assert said.startswith("tool_choice: Input should be 'none', 'auto' or 'required' or a valid dictionary")
    said = client.post(CHAT, json={"messages": [{"role": "user", "content": 5}]}).json()["error"]["message"]
    assert said == "messages.0.content: Input should be a valid string or a valid list."


def test_what_nobody_foresaw_is_answered_in_the_shape_of_errors(open_site):
    client, backend = open_site()
    backend.says = None  # what no tokenizer takes
    answer = client.post(CHAT, json=HELLO)
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b"])
def test_a_path_that_no_file_can_have_is_refused(open_site, path):
    client, _ = open_site()
    assert client.post("/v1/models/swap", json={"path": path}).status_code == 400


@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, HELLO), (RESPONSES, {"input": "a"}), ("/v1/messages", {**HELLO, "max_tokens": 9})]
)
def test_an_engine_that_ends_within_a_stream_is_an_event_of_its_own(open_site, path, body):
    site, backend = open_site()

    async def dies(request):
        yield Output(request.id, 0, backend.tokenizer.encode("hello").ids)
        raise BackendStopped

    backend.generate = dies
    answer = site.post(path, json={**body, "stream": True})
    last = answer.text.strip().split("\n\n")[-1].split("\n")
    told = json.loads(last[-1].removeprefix("data: "))
    assert told["error"]["message"].endswith(".") and told["error"]["type"] == "server_error"
    assert path == CHAT or (last[0], told["type"]) == ("event: error", "error")
