"""A plugin with which pytest runs llama.cpp's own tests of its server against `tenfold serve`, for `bench.serve.conformance`.

Those tests start a server each, by flags. Here one runs with the options that the flags stand for, as long as tests want the
same. What llama.cpp calls otherwise is called as here: paths without `/v1`, the fields of `/completion` and `/tokenize`, and
`/apply-template`, which is `/tokenize` and then `/detokenize`; the text of a chat's first chunk is null there and empty in OpenAI's
form. The tests of `bench/serve/left_out.py` are left out.
"""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from bench.serve.left_out import LLAMA_CPP
from bench.serve.server import SMALL_OPTIONS, serving, small_model
from tenfold.serve.api.keys import VERSION

sys.modules.setdefault("wget", ModuleType("wget"))  # with which the tests would download models
LONGEST = 8192  # tokens of a context that a test asks for
_SAME = ("/v1/", "/tokenize", "/detokenize", "/health")  # paths that are the same on both servers


class Wanted(NamedTuple):
    """What a test wants of its server."""

    name: str
    context: int
    template: str
    key: str


class Shared:
    """The server that runs, of a small model with random weights. Another takes its place where a test wants other options."""

    def __init__(self, home: Path) -> None:
        self._home, self._model = home, small_model(home / "small", LONGEST)
        self._runs, self._port = ExitStack(), 0
        self._wanted: Wanted | None = None

    def port(self, wanted: Wanted) -> int:
        if wanted != self._wanted:
            self.stop()
            url, _ = self._runs.enter_context(serving(*self._options(wanted)))
            self._port, self._wanted = urlsplit(url).port or 0, wanted
        return self._port

    def _options(self, wanted: Wanted) -> list[str]:
        """What the command is given for it."""
        folder = Path(self._runs.enter_context(TemporaryDirectory(dir=self._home)))
        model = shutil.copytree(self._model, folder / wanted.name)
        if wanted.template:
            shutil.copy(wanted.template, model / "chat_template.jinja")
        options = [str(model), "--max-model-len", str(wanted.context), *SMALL_OPTIONS, "--feedback", ""]
        if wanted.key:
            keys = {"version": VERSION, "keys": {"test": hashlib.sha256(wanted.key.encode()).hexdigest()}}
            (folder / "keys.json").write_text(json.dumps(keys))
            options += ["--keys", str(folder / "keys.json")]
        return options

    def stop(self) -> None:
        self._wanted = None
        self._runs.close()


def _tokenized(body: dict[str, Any]) -> None:
    if body["token_strs"]:
        pairs = zip(body["tokens"], body["token_strs"], strict=True)
        body["tokens"] = [{"id": token, "piece": piece} for token, piece in pairs]


def _detokenized(body: dict[str, Any]) -> None:
    body["content"] = body["prompt"]


def _completed(body: dict[str, Any]) -> None:
    body["content"] = body["choices"][0]["text"]


def _counted(body: dict[str, Any]) -> None:
    body["input_tokens"] = body["count"]


def _begun(body: dict[str, Any]) -> None:
    for choice in body["choices"]:
        if choice.get("delta", {}).get("content") == "":
            choice["delta"]["content"] = None


class Call(NamedTuple):
    """How what a path of llama.cpp's does is asked for here."""

    path: str
    names: dict[str, str]  # of fields that are called otherwise
    defaults: dict[str, Any]
    read: Callable[[dict[str, Any]], None]  # writes an answer as llama.cpp does

    def asked(self, data: dict[str, Any]) -> dict[str, Any]:
        """A request of llama.cpp's as this server takes it."""
        return self.defaults | {self.names.get(name, name): value for name, value in data.items()}


_FLAGS = {"max_tokens": 64, "seed": 42, "temperature": 0.8}  # what --n-predict, --seed and --temp say to a request that does not
_COMPLETION = Call("/v1/completions", {"n_predict": "max_tokens"}, _FLAGS, _completed)
_CHAT = Call("/v1/chat/completions", {}, {}, _begun)
_TOKENIZE = {"content": "prompt", "add_special": "add_special_tokens", "with_pieces": "return_token_strs"}
CALLS = {
    "/completion": _COMPLETION,
    "/completions": _COMPLETION,
    "/chat/completions": _CHAT,
    "/v1/chat/completions": _CHAT,
    "/chat/completions/input_tokens": Call("/tokenize", {}, {}, _counted),
    "/tokenize": Call("/tokenize", _TOKENIZE, {"add_special_tokens": False}, _tokenized),
    "/detokenize": Call("/detokenize", {}, {}, _detokenized),
}


def pytest_sessionstart(session: pytest.Session) -> None:
    """Put this server in the place of llama.cpp's in its tests' module `utils`, which their conftest has imported."""
    utils, home = sys.modules["utils"], TemporaryDirectory()
    shared = Shared(Path(home.name))
    session.config.add_cleanup(home.cleanup)
    session.config.add_cleanup(shared.stop)  # the last one comes first
    process = utils.ServerProcess
    ask, ask_for_stream = process.make_request, process.make_stream_request

    def start(self: Any, timeout_seconds: int = 0) -> None:
        self.server_port = shared.port(Wanted(self.model_alias, self.n_ctx, self.chat_template_file or "", self.api_key or ""))

    def make_url(self: Any, path: str, host: str | None = None) -> str:
        return f"http://{self.server_host}:{self.server_port}{path if path.startswith(_SAME) else f'/v1{path}'}"

    def make_request(self: Any, method: str, path: str, data: Any = None, *more: Any, **others: Any) -> Any:
        if path == "/apply-template":
            thinks = {} if self.reasoning is None else {"chat_template_kwargs": {"enable_thinking": self.reasoning != "off"}}
            tokens = ask(self, method, "/tokenize", data | thinks).body["tokens"]
            return ask(self, method, "/detokenize", {"tokens": tokens})
        if path not in CALLS:
            return ask(self, method, path, data, *more, **others)
        call = CALLS[path]
        answer = ask(self, method, call.path, call.asked(data), *more, **others)
        if answer.status_code == 200:
            call.read(answer.body)
        return answer

    def make_stream_request(self: Any, method: str, path: str, data: Any = None, *more: Any, **others: Any) -> Iterator[Any]:
        call = CALLS.get(path)
        if call is None:
            yield from ask_for_stream(self, method, path, data, *more, **others)
            return
        for chunk in ask_for_stream(self, method, call.path, call.asked(data), *more, **others):
            call.read(chunk)
            yield chunk

    process.start, process.make_url = start, make_url
    process.make_request, process.make_stream_request = make_request, make_stream_request
    process.stop = lambda self: None
    utils.ServerPreset.load_all = staticmethod(lambda: None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is left out."""
    for item in items:
        if why := reason(item.nodeid):
            item.add_marker(pytest.mark.skip(why))


def reason(test: str) -> str:
    """Why a test is left out; empty if it is not."""
    name = test.removeprefix("unit/")
    return next((why for why, patterns in LLAMA_CPP.items() if any(re.match(f"{p}$", name, re.DOTALL) for p in patterns)), "")
