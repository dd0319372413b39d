"""The API by OpenAI's own client against a real server on a free port, with a small model of random weights."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import openai
import pytest
import torch
from tokenizers import Tokenizer

from tenfold.data.text.tokenizer import train_tokenizer, trained_vocabulary
from tenfold.model.io.huggingface import write_model
from tenfold.model.io.tokenizer import save_tokenizer
from tenfold.model.llama import Llama
from tenfold.serve.api.keys import Keys, make_key
from tenfold.serve.api.server import serve
from tenfold.serve.api.streaming import format_event
from tenfold.serve.options import ServerOptions
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec

TEMPLATE = (
    "{% for m in messages %}{% if m.content == 'loop' %}{{ raise_exception('no loops here.') }}{% endif %}"
    "{% if m.content == 'escape' %}{{ m.__class__.__mro__ }}{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
HELLO = [{"role": "user", "content": "hello there"}]


def make_model(directory, seed):
    tokenizer = train_tokenizer(["hello there, how are you today? " * 20, "def f(x):\n    return x + 1\n" * 20], 300)
    torch.manual_seed(seed)
    spec = ModelSpec(
        name="tiny",
        dim=64,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        ffn_dim=96,
        vocab_size=tokenizer.get_vocab_size(),
        head_dim=16,
        context=512,
    )
    model = Llama(spec)
    torch.nn.init.normal_(model.head.weight, std=0.3)
    write_model(model, directory)
    save_tokenizer(tokenizer, trained_vocabulary(tokenizer.get_vocab_size()), directory)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    home = tmp_path_factory.mktemp("models")
    return make_model(home / "tiny", 0), make_model(home / "other", 1)


class Server:
    """`tenfold serve` as a user starts it."""

    def __init__(self, *arguments, wait=True):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        command = [
            sys.executable,
            "-m",
            "tenfold",
            "serve",
            *map(str, arguments),
            "--port",
            str(self.port),
            "--threads",
            "1",
            "--kv-cache-gib",
            "0.02",
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        end = time.monotonic() + 120
        while wait and self.get("/health")[0] != 200:
            assert self.process.poll() is None and time.monotonic() < end, self.process.stdout.read()
            time.sleep(0.2)

    def get(self, path, method="GET", body=None, key=None):
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def post(self, path, body, key=None):
        status, text = self.get(path, "POST", body if isinstance(body, bytes) else json.dumps(body).encode(), key)
        return status, json.loads(text)

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.communicate(timeout=60)[0]

    def usage(self):
        return next(line for line in self.get("/metrics")[1].splitlines() if line.startswith("vllm:kv_cache_usage_perc")).split()[1]

    def wait_until_idle(self):
        end = time.monotonic() + 60
        while self.usage() != "0.0":
            assert time.monotonic() < end, "blocks are still in use"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def server(directories, tmp_path_factory):
    database = tmp_path_factory.mktemp("feedback") / "f.db"
    running = Server(*directories, "--feedback", f"sqlite:///{database}", "--max-loaded", "2")
    yield running
    output = running.stop()
    assert "Traceback" not in output, output


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True)


def test_a_chat_is_the_same_streamed_and_whole(client):
    ask = {"model": "tiny", "messages": HELLO, "max_tokens": 20, "temperature": 0, "n": 2}
    whole = client.chat.completions.create(**ask)
    texts, reasons, last = ["", ""], [[], []], None
    for chunk in client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index].append(choice.finish_reason)
        last = chunk
    assert texts == [c.message.content for c in whole.choices] and texts[0]
    assert reasons == [[c.finish_reason] for c in whole.choices]
    assert last.choices == [] and last.usage.completion_tokens == whole.usage.completion_tokens == 40
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens


def test_a_stop_string_is_nowhere_in_the_text(client):
    text = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=20, temperature=0).choices[0].message.content
    stop = text[4:7]
    cut = text[: text.index(stop)]
    answer = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=20, temperature=0, stop=stop).choices[0]
    assert (answer.message.content, answer.finish_reason) == (cut, "stop")
    pieces = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=20, temperature=0, stop=stop, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in pieces) == cut


def test_seeds_and_logprobs(client):
    ask = {"model": "tiny", "messages": HELLO, "max_tokens": 8, "seed": 3, "logprobs": True, "top_logprobs": 3}
    a, b = (client.chat.completions.create(**ask).choices[0] for _ in range(2))
    assert a.message.content == b.message.content
    assert len(a.logprobs.content) == 8 and all(len(t.top_logprobs) == 3 for t in a.logprobs.content)
    plain = client.completions.create(model="tiny", prompt=["a", "b"], max_tokens=3, logprobs=2)
    assert len(plain.choices[1].logprobs.token_logprobs) == 3
    lenient = openai.OpenAI(base_url=client.base_url, api_key="none")  # its strict types have no null for a first token
    plain = lenient.completions.create(model="tiny", prompt=["a", "b"], max_tokens=3, logprobs=2, echo=True)
    assert [c.text[0] for c in plain.choices] == ["a", "b"] and plain.choices[1].logprobs.token_logprobs[0] is None


def test_structured_output_is_what_was_asked_for(client):
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [1, 22]}, "ok": {"type": "boolean"}},
        "required": ["n", "ok"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for seed in range(3):
        answer = client.chat.completions.create(
            model="tiny", messages=HELLO, response_format=form, seed=seed, max_tokens=100
        ).choices[0]
        value = json.loads(answer.message.content)
        assert value["n"] in (1, 22) and isinstance(value["ok"], bool) and answer.finish_reason == "stop"
    text = (
        client.chat.completions.create(model="tiny", messages=HELLO, extra_body={"guided_regex": "[ab]{5}c"}, max_tokens=50)
        .choices[0]
        .message.content
    )
    assert len(text) == 6 and set(text[:5]) <= set("ab") and text[5] == "c"


@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_called(client, stream):
    ask = {"model": "tiny", "messages": HELLO, "tools": [WEATHER], "tool_choice": "required", "max_tokens": 100}
    if stream:
        chunks = client.chat.completions.create(**ask, stream=True)
        begun, *more = [c.function for chunk in chunks for c in chunk.choices[0].delta.tool_calls or ()]
        name, arguments = begun.name, "".join(call.arguments for call in more)
    else:
        (call,) = client.chat.completions.create(**ask).choices[0].message.tool_calls
        name, arguments = call.function.name, call.function.arguments
    assert name == "weather" and json.loads(arguments)["city"] in ("Paris", "Rome")


def test_responses_and_their_memory(client):
    first = client.responses.create(model="tiny", input="hello", max_output_tokens=5, temperature=0)
    assert first.status == "incomplete" and first.usage.output_tokens == 5
    second = client.responses.create(model="tiny", input="and you?", previous_response_id=first.id, max_output_tokens=5)
    assert second.usage.input_tokens > first.usage.input_tokens + 5
    events = list(client.responses.create(model="tiny", input="hello", max_output_tokens=5, temperature=0, stream=True))
    assert events[-1].response.output_text == first.output_text == "".join(e.delta for e in events if e.type.endswith("text.delta"))
    assert client.responses.retrieve(first.id).output_text == first.output_text
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_chats_are_stored_for_their_owner_and_found_by_metadata(client):
    chats = client.chat.completions
    ask = {"model": "tiny", "messages": HELLO, "max_tokens": 3}
    made = [chats.create(**ask, store=True, metadata={"run": "a", "n": str(n)}) for n in range(3)]
    streamed = [chunk.id for chunk in chats.create(**ask, store=True, metadata={"run": "a", "n": "3"}, stream=True)].pop()
    unstored = chats.create(**ask)
    ids = [*(chat.id for chat in made), streamed]
    found = chats.list(metadata={"run": "a"}, limit=3)
    assert [chat.id for chat in found.data] == ids[:3] and found.has_more and [chat.id for chat in found] == ids
    assert [chat.id for chat in chats.list(metadata={"run": "a"}, order="desc")] == ids[::-1]
    assert not chats.list(model="other").data and not chats.list(metadata={"run": "b"}).data
    assert chats.retrieve(ids[0]).choices[0].message.content == made[0].choices[0].message.content
    chats.update(ids[0], metadata={"run": "b"})
    assert [chat.id for chat in chats.list(metadata={"run": "b"})] == ids[:1]
    assert [chat.id for chat in chats.list() if chat.id in ids] == ids  # in its place
    lenient = openai.OpenAI(base_url=client.base_url, api_key="none")  # whose strict types have no user
    assert [m.content for m in lenient.chat.completions.messages.list(ids[0])] == ["hello there"]
    assert chats.delete(ids[0]).deleted
    for name in (ids[0], unstored.id):
        with pytest.raises(openai.NotFoundError):
            chats.retrieve(name)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(ids[1])


@pytest.mark.parametrize("stream", [False, True])
def test_responses_call_functions_and_read_what_they_gave(client, stream):
    ask = {"model": "tiny", "input": "hello", "tools": [{"type": "function", **WEATHER["function"]}], "tool_choice": "required"}
    if stream:
        events = list(client.responses.create(**ask, stream=True))
        assert [e.sequence_number for e in events] == list(range(len(events)))
        response = events[-1].response
        assert [e.arguments for e in events if e.type == "response.function_call_arguments.done"] == [response.output[0].arguments]
    else:
        response = client.responses.create(**ask)
    (call,) = response.output
    assert (call.type, call.name) == ("function_call", "weather") and json.loads(call.arguments)["city"] in ("Paris", "Rome")
    given = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]
    again = client.responses.create(model="tiny", input=given, previous_response_id=response.id, max_output_tokens=3)
    assert again.usage.input_tokens > client.responses.input_tokens.count(model="tiny", input="hello").input_tokens


def test_models_embeddings_tokens_and_the_page(client, server):
    assert [m.id for m in client.models.list()] == ["tiny", "other"]
    assert client.models.retrieve("other").id == "other"
    vectors = client.embeddings.create(model="tiny", input=["hello", "hello", "there"], encoding_format="float").data
    assert vectors[0].embedding == vectors[1].embedding != vectors[2].embedding
    assert sum(x * x for x in vectors[0].embedding) == pytest.approx(1, abs=1e-5)
    tokens = server.post("/tokenize", {"prompt": "hello there"})[1]["tokens"]
    assert "hello there" in server.post("/detokenize", {"tokens": tokens})[1]["prompt"]
    status, page = server.get("/")
    assert status == 200 and "<!doctype html>" in page and "http://" not in page


def test_tokens_of_prompts_that_are_longer_than_the_context_are_counted(client, server, directories):
    tokenizer, said = Tokenizer.from_file(str(directories[0] / "tokenizer.json")), "hello there " * 5000
    plain, chat = (tokenizer.encode(text, add_special_tokens=False).ids for text in (said, f"<user>{said}<assistant>"))
    assert len(plain) > 2 * 512
    assert server.post("/tokenize", {"prompt": said, "add_special_tokens": False})[1]["tokens"] == plain
    assert server.post("/tokenize", {"prompt": said})[1]["tokens"][-len(plain) :] == plain
    assert server.post("/tokenize", {"messages": [{"role": "user", "content": said}]})[1]["tokens"] == chat
    assert client.responses.input_tokens.count(model="tiny", input=said).input_tokens == len(chat)
    status, answer = server.post("/v1/responses", {"input": said})
    assert status == 400 and "too many for the context of 512" in answer["error"]["message"]


def test_texts_are_scored_by_the_cosine_of_their_embeddings(client, server):
    texts = ["hello there", "how are you", "def f(x):"]
    vectors = [
        torch.tensor(one.embedding, dtype=torch.float64)
        for one in client.embeddings.create(model="tiny", input=texts, encoding_format="float").data
    ]
    for first, pairs in ((texts[0], [(0, 0), (0, 1), (0, 2)]), (texts[::-1], [(2, 0), (1, 1), (0, 2)])):
        status, answer = server.post("/v1/score", {"model": "tiny", "text_1": first, "text_2": texts})
        assert status == 200 and [one["index"] for one in answer["data"]] == [0, 1, 2]
        expected = [torch.nn.functional.cosine_similarity(vectors[a], vectors[b], 0).item() for a, b in pairs]
        assert [one["score"] for one in answer["data"]] == pytest.approx(expected, abs=1e-5)
    status, refused = server.post("/v1/score", {"text_1": texts[:2], "text_2": texts})
    assert status == 400 and refused["error"]["param"] == "text_1"


def test_documents_are_ranked_by_their_scores(server):
    documents = ["def f(x):", "hello there", "how are you"]
    scores = server.post("/v1/score", {"text_1": "hello there", "text_2": documents})[1]["data"]
    best = sorted(scores, key=lambda one: one["score"], reverse=True)
    for top_n, count in ((None, 3), (0, 3), (2, 2), (9, 3)):
        status, answer = server.post("/v1/rerank", {"query": "hello there", "documents": documents, "top_n": top_n})
        assert status == 200 and [found["index"] for found in answer["results"]] == [one["index"] for one in best[:count]]
        assert answer["results"][0] == {
            "index": 1,
            "document": {"text": documents[1]},
            "relevance_score": pytest.approx(1, abs=1e-5),
        }


def test_a_json_object_follows_the_schema_that_comes_with_it(server):
    body = {"messages": HELLO, "max_tokens": 20, "response_format": {"type": "json_object", "schema": {"const": "42"}}}
    assert server.post("/v1/chat/completions", body)[1]["choices"][0]["message"]["content"] == '"42"'


@pytest.mark.parametrize("path, allowed", [("/v1/models", "GET"), ("/v1/models/swap", "POST"), ("/v1/responses/x", "DELETE, GET")])
def test_a_method_that_a_path_does_not_have_is_refused_with_those_that_it_has(server, path, allowed):
    request = urllib.request.Request(server.url + path, b"{}", method="PATCH")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    assert (refused.value.code, refused.value.headers["allow"]) == (405, allowed)
    assert json.loads(refused.value.read())["error"]["message"].endswith(".")


def test_two_models_answer_differently_and_a_swap_drops_nothing(client, server, directories):
    ask = {"messages": HELLO, "max_tokens": 10, "temperature": 0}
    tiny, other = (client.chat.completions.create(model=m, **ask).choices[0].message.content for m in ("tiny", "other"))
    assert tiny != other
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=300, temperature=0, stream=True, extra_body={"ignore_eos": True}
    )
    next(stream)
    assert server.post("/v1/models/swap", {"model": "tiny", "path": str(directories[1])})[0] == 200
    assert [c.choices[0].finish_reason for c in stream][-1] == "length"
    assert client.chat.completions.create(model="tiny", **ask).choices[0].message.content == other
    assert server.post("/v1/models/swap", {"model": "tiny", "path": str(directories[0])})[0] == 200
    assert client.chat.completions.create(model="tiny", **ask).choices[0].message.content == tiny


BAD = {
    "no json": (b"{nonsense", 400, "not valid JSON"),
    "not utf-8": (b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}', 400, "."),
    "no object": (b"[1, 2]", 400, "."),
    "no messages": ({}, 400, "messages"),
    "empty messages": ({"messages": []}, 400, "messages"),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
        "data URLs",
    ),
    "unknown model": ({"model": "gpt-x", "messages": HELLO}, 404, "gpt-x"),
    "too long": ({"messages": [{"role": "user", "content": "hello there " * 1000}]}, 400, "too many for the context of 512"),
    "ten megabytes": ({"messages": [{"role": "user", "content": "x" * 10_000_000}]}, 400, "too many for the context of 512"),
    "forty megabytes": ({"messages": [{"role": "user", "content": "x" * 40_000_000}]}, 413, "bytes"),
    "answer too long": ({"messages": HELLO, "max_tokens": 5000}, 400, "too many for the context of 512"),
    "bad schema": (
        {"messages": HELLO, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}},
        400,
        "JSON schema",
    ),
    "bad regex": ({"messages": HELLO, "guided_regex": "(["}, 400, "regular expression"),
    "hot": ({"messages": HELLO, "temperature": 9}, 400, "temperature"),
    "not a number": (b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}', 400, "temperature"),
    "logprobs": ({"messages": HELLO, "logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
    "options without stream": ({"messages": HELLO, "stream_options": {"include_usage": True}}, 400, "stream"),
    "bias": ({"messages": HELLO, "logit_bias": {"x": 1}}, 400, "logit_bias"),
    "bias outside": ({"messages": HELLO, "logit_bias": {"999999": 1}}, 400, "logit_bias"),
    "tool": ({"messages": HELLO, "tool_choice": "required"}, 400, "tool"),
    "template refuses": ({"messages": [{"role": "user", "content": "loop"}]}, 400, "no loops here"),
    "template escapes": ({"messages": [{"role": "user", "content": "escape"}]}, 400, "template"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_sentence_and_never_500(server, what):
    body, status, words = BAD[what]
    got, answer = server.post("/v1/chat/completions", body)
    message = answer["error"]["message"]
    assert (got, words in message) == (status, True), answer
    assert "\n" not in message and message.endswith(".")
    assert server.get("/health")[0] == 200


def test_a_client_that_vanishes_frees_its_blocks(server, client):
    for stream in (True, False):
        body = json.dumps(
            {"model": "tiny", "messages": HELLO, "max_tokens": 400, "n": 8, "stream": stream, "ignore_eos": True}
        ).encode()
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            time.sleep(0.2)
        server.wait_until_idle()
    after = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=3, extra_body={"ignore_eos": True})
    assert after.usage.completion_tokens == 3


def test_feedback_needs_consent_and_is_deleted_with_its_user(server):
    ask = {"messages": HELLO, "max_tokens": 4, "user": "ann"}
    unstored = server.post("/v1/chat/completions", ask)[1]["id"]
    stored = server.post("/v1/chat/completions", {**ask, "store": True})[1]["id"]
    thumb = {"user": "ann", "rating": 1}
    assert server.post("/v1/feedback", {**thumb, "consent": True, "response_id": unstored})[0] == 404
    assert server.post("/v1/feedback", {**thumb, "response_id": stored})[0] == 400
    assert server.post("/v1/feedback", {**thumb, "consent": True, "response_id": stored}) == (200, {"kept": True})
    assert json.loads(server.get("/v1/feedback/users/ann", "DELETE")[1]) == {"deleted_rows": 2}
    assert json.loads(server.get("/v1/feedback/users/ann", "DELETE")[1]) == {"deleted_rows": 0}


def test_keys_are_limited_a_full_queue_refuses_and_sigterm_finishes_what_runs(directories, tmp_path):
    file = tmp_path / "keys.json"
    key = make_key(file, "ann")
    operator = make_key(file, "olga", operator=True)
    assert Keys.read(file).operators == {"olga"} and Keys.read(file).owner(operator) == "olga"
    assert key not in file.read_text() and oct(file.stat().st_mode & 0o777) == "0o600"
    assert Keys.read(file).owner(key) == "ann" and Keys.read(file).owner(key + "x") is None
    server = Server(directories[0], "--feedback", "", "--keys", file, "--requests-per-minute", "5", "--max-queue", "1")
    tiny = {"prompt": "a", "max_tokens": 1}
    assert server.post("/v1/completions", tiny)[0] == 401
    assert server.post("/v1/models/swap", {"path": str(directories[0])})[0] == 401
    assert server.post("/v1/models/swap", {"path": str(directories[0])}, key)[0] == 403
    assert server.post("/v1/models/swap", {"path": str(directories[0])}, operator)[0] == 200
    assert [server.post("/v1/completions", tiny, key)[0] for _ in range(2)] == [200, 200]
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=450, stream=True, extra_body={"ignore_eos": True}
    )
    next(stream)
    for words in ("queue is full", "Too many requests with this key"):
        with pytest.raises(openai.RateLimitError, match=words) as refused:
            client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=5)
        assert int(refused.value.response.headers["retry-after"]) >= 1
    server.process.send_signal(signal.SIGTERM)
    assert [c.choices[0].finish_reason for c in stream][-1] == "length"
    assert "Traceback" not in server.process.communicate(timeout=60)[0]


def test_after_sigterm_no_model_is_loaded_for_who_waits_and_what_runs_is_finished(directories):
    server = Server(*directories, "--feedback", "", "--max-loaded", "1", "--idle-seconds", "600", "--patience-seconds", "600")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=450, stream=True, extra_body={"ignore_eos": True}
    )
    next(stream)
    body = json.dumps({"model": "other", "prompt": "hello", "max_tokens": 1}).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as waits:
        head = f"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        waits.sendall(head.encode() + body)
        time.sleep(1)  # the first model counts as busy for long, so that the request waits
        server.process.send_signal(signal.SIGTERM)
        answer = b"".join(iter(lambda: waits.recv(65536), b"")).decode()
    assert answer.startswith("HTTP/1.1 503 ") and "loads no further model" in answer
    assert [c.choices[0].finish_reason for c in stream][-1] == "length"
    assert "Traceback" not in server.process.communicate(timeout=60)[0]


def test_an_event_is_one_line_however_a_client_splits_them():
    text = "".join(map(chr, range(0x20, 0x3000)))
    name, data, *rest = format_event({"type": "delta", "text": text}, named=True).splitlines()
    assert name == "event: delta" and rest == [""] and json.loads(data.removeprefix("data: "))["text"] == text


def test_a_host_that_others_can_reach_needs_keys():
    with pytest.raises(TenfoldError, match="make a key with"):
        serve({}, ServerOptions(host="0.0.0.0"))


def test_many_at_once_are_each_answered_as_alone(server, client):
    def ask(i):
        return client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": f"hello {i}"}], max_tokens=12, seed=i, temperature=1
        ).choices[0].message.content  # fmt: skip

    alone = [ask(i) for i in range(12)]
    together = [None] * 12
    threads = [threading.Thread(target=lambda i=i: together.__setitem__(i, ask(i))) for i in range(12)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert together == alone
