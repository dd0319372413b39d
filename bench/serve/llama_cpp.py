"""A pytest plugin that runs llama.cpp's own server tests against `tenfold serve`, for `bench.serve.conformance`.

Each of those tests starts a server with llama.cpp's flags. Here one server runs with the equivalent options, and is restarted only
when a test wants others. The plugin translates llama.cpp's names: paths without `/v1`, the fields of `/completion` and `/tokenize`,
and `/apply-template`, which becomes `/tokenize` and then `/detokenize`. The text of a chat's first chunk is null in llama.cpp and
empty in OpenAI's format. The tests listed in `bench/serve/left_out.py` are skipped.
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

sys.modules.setdefault("wget", ModuleType("wget"))  # a stub: the tests import it to download models
LONGEST = 8192  # the longest context that a test asks for, in tokens
_SAME = ("/v1/", "/tokenize", "/detokenize", "/health")  # paths that are the same on both servers


class Wanted(NamedTuple):
    """The settings that a test wants for its server."""

    name: str
    context: int
    template: str
    key: str


class Shared:
    """The running server, with a small model of random weights. It is replaced when a test wants other settings."""

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
        """The arguments of `tenfold serve` for these settings."""
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
    """How a request to one of llama.cpp's paths is translated."""

    path: str
    names: dict[str, str]  # llama.cpp's name of a field: the name here
    defaults: dict[str, Any]
    read: Callable[[dict[str, Any]], None]  # changes an answer, in place, into llama.cpp's form

    def asked(self, data: dict[str, Any]) -> dict[str, Any]:
        """A body in llama.cpp's form, translated for this server."""
        return self.defaults | {self.names.get(name, name): value for name, value in data.items()}


_FLAGS = {"max_tokens": 64, "seed": 42, "temperature": 0.8}  # defaults that llama.cpp's tests set by --n-predict, --seed and --temp
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
    """Replace llama.cpp's server by this one in the tests' module `utils`, which their conftest has imported."""
    utils, home = sys.modules["utils"], TemporaryDirectory()
    shared = Shared(Path(home.name))
    session.config.add_cleanup(home.cleanup)
    session.config.add_cleanup(shared.stop)  # cleanups run in reverse order
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
    """Skip the tests that are left out."""
    for item in items:
        if why := reason(item.nodeid):
            item.add_marker(pytest.mark.skip(why))


def reason(test: str) -> str:
    """Why a test is left out; empty if it is not."""
    name = test.removeprefix("unit/")
    return next((why for why, patterns in LLAMA_CPP.items() if any(re.match(f"{p}$", name, re.DOTALL) for p in patterns)), "")
