"""A plugin with which pytest runs llama.cpp's own tests of its server against `tenfold serve`, for `bench.serve.conformance`.

Those tests start a server each, by flags. Here one runs with the options that the flags stand for, as long as tests want the
same. What llama.cpp calls otherwise is called as here: paths without `/v1`, the fields of `/completion` and `/tokenize`, and
`/apply-template`, which is `/tokenize` and then `/detokenize`. The tests of `bench/serve/left_out.py` are left out.
"""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from bench.serve.left_out import LLAMA_CPP
from bench.serve.server import serving, small_model
from tenfold.serve.api.keys import VERSION

sys.modules.setdefault("wget", ModuleType("wget"))  # with which the tests would download models
_SAME = ("/v1/", "/tokenize", "/detokenize", "/health")  # paths that are the same on both servers


class Wanted(NamedTuple):
    """What a test wants of its server."""

    name: str
    context: int
    template: str
    key: str


@contextmanager
def server(wanted: Wanted) -> Iterator[int]:
    """The port of a server of a small model with random weights."""
    with TemporaryDirectory() as home:
        model = small_model(Path(home) / wanted.name, wanted.context)
        if wanted.template:
            shutil.copy(wanted.template, model / "chat_template.jinja")
        options = ["--any-name", "--kv-cache-gib", "0.1", "--threads", "1", "--feedback", ""]
        if wanted.key:
            keys = Path(home) / "keys.json"
            keys.write_text(json.dumps({"version": VERSION, "keys": {"test": hashlib.sha256(wanted.key.encode()).hexdigest()}}))
            options += ["--keys", str(keys)]
        with serving(model, *options) as (url, _):
            yield urlsplit(url).port or 0


class Shared:
    """The server that runs. Another takes its place where a test wants other options."""

    def __init__(self) -> None:
        self._runs, self._port = ExitStack(), 0
        self._wanted: Wanted | None = None

    def port(self, wanted: Wanted) -> int:
        if wanted != self._wanted:
            self.stop()
            self._port, self._wanted = self._runs.enter_context(server(wanted)), wanted
        return self._port

    def stop(self) -> None:
        self._wanted = None
        self._runs.close()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Put this server in the place of llama.cpp's in its tests' module `utils`, which their conftest has imported."""
    utils, shared = sys.modules["utils"], Shared()
    session.config.add_cleanup(shared.stop)
    process, ask = utils.ServerProcess, utils.ServerProcess.make_request

    def start(self: Any, timeout_seconds: int = 0) -> None:
        self.server_port = shared.port(Wanted(self.model_alias, self.n_ctx, self.chat_template_file or "", self.api_key or ""))

    def make_url(self: Any, path: str, host: str | None = None) -> str:
        return f"http://{self.server_host}:{self.server_port}{path if path.startswith(_SAME) else f'/v1{path}'}"

    def make_request(self: Any, method: str, path: str, data: Any = None, *more: Any, **others: Any) -> Any:
        if path == "/apply-template":
            thinks = {} if self.reasoning is None else {"chat_template_kwargs": {"enable_thinking": self.reasoning != "off"}}
            tokens = ask(self, method, "/tokenize", data | thinks).body["tokens"]
            return ask(self, method, "/detokenize", {"tokens": tokens})
        if path not in _NAMES:
            return ask(self, method, path, data, *more, **others)
        there, names = _NAMES[path]
        answer = ask(
            self, method, there, _DEFAULTS.get(path, {}) | {names.get(key, key): data[key] for key in data}, *more, **others
        )
        if answer.status_code == 200:
            _READ[path](answer.body)
        return answer

    process.start, process.make_url, process.make_request = start, make_url, make_request
    process.stop = lambda self: None
    utils.ServerPreset.load_all = staticmethod(lambda: None)


def _tokenized(body: dict[str, Any]) -> None:
    if body["token_strs"]:
        pairs = zip(body["tokens"], body["token_strs"], strict=True)
        body["tokens"] = [{"id": token, "piece": piece} for token, piece in pairs]


def _detokenized(body: dict[str, Any]) -> None:
    body["content"] = body["prompt"]


def _completed(body: dict[str, Any]) -> None:
    body["content"] = body["choices"][0]["text"]


_TOKENIZE = {"content": "prompt", "add_special": "add_special_tokens", "with_pieces": "return_token_strs"}
_NAMES = {  # by path of llama.cpp's the path here, and the fields that are called otherwise
    "/tokenize": ("/tokenize", _TOKENIZE),
    "/detokenize": ("/detokenize", {}),
    "/completion": ("/completions", {"n_predict": "max_tokens"}),
    "/completions": ("/completions", {"n_predict": "max_tokens"}),
}
_DEFAULTS = {"/tokenize": {"add_special_tokens": False}, "/completion": {"max_tokens": 64}, "/completions": {"max_tokens": 64}}
_READ = {"/tokenize": _tokenized, "/detokenize": _detokenized, "/completion": _completed, "/completions": _completed}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is listed, and mark each by its reason."""
    left_out = [item for item in items if reason(item.nodeid)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def reason(test: str) -> str:
    """Why a test is left out; empty if it is not."""
    name = test.removeprefix("unit/")
    return next((why for why, patterns in LLAMA_CPP.items() if any(re.match(f"{p}$", name, re.DOTALL) for p in patterns)), "")
