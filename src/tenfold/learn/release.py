"""Releases: `release.json` in the home names the generation in service, those before it, and a candidate on trial."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tenfold.learn.data import VERSION, write_versioned
from tenfold.learn.gate import read_gate
from tenfold.learn.options import RELEASE as FILE
from tenfold.model.io.huggingface import weights_hash
from tenfold.model.path import model_path
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import file_sha256
from tenfold.spec.versions import read_document


@dataclass(frozen=True)
class Server:
    """A running server whose first model is the one in service; `key` is the API key of an operator, where it has keys."""

    url: str
    key: str = ""

    def serve(self, now: dict[str, Any]) -> None:
        """Make the server answer as `now`, the content of `release.json`, says.

        Returns when it does; requests are answered meanwhile. Raises TenfoldError where it refuses or cannot be reached.
        """
        if (candidate := now.get("candidate")) is not None:
            self._post("split", {"path": _weights_path(candidate), "share": candidate["share"]})
        else:
            self._post("swap", {"path": _weights_path(now)})

    def _post(self, verb: str, body: dict[str, Any]) -> None:
        post(f"{self.url}/v1/models/{verb}", body, self.key)


def _weights_path(of: dict[str, Any]) -> str:
    return str(model_path(Path(of["path"])).resolve())


def released(home: Path) -> dict[str, Any] | None:
    """The content of `release.json`, or None where there is none.

    `path` and `sha256` (of the weights) are those of the generation in service, `before` lists the earlier ones, newest first.
    `candidate`, while there is one, also has its `share` of the users and `since`, the Unix time in seconds when its trial began.
    """
    return read_document(home / FILE, VERSION, "release a generation anew") if (home / FILE).exists() else None


def released_before(home: Path, name: str) -> Path | None:
    """The generation in service, or where that is called `name` the one before it; None where there is none."""
    now = released(home)
    known = [] if now is None else [now["path"], *(one["path"] for one in now["before"])]
    return next((Path(path) for path in known if Path(path).name != name), None)


def release(new: Path, home: Path, share: float = 1.0, server: Server | None = None) -> dict[str, Any]:
    """Put `new` in service, or with a `share` below 1 make it the candidate for that share of the users; on `server` first, if any.

    Returns the new content of `release.json`. Raises TenfoldError where `new` has not passed its gate, its weights are not those
    that the gate judged, or the server refuses; then nothing is changed.
    """
    judged = read_gate(new)
    weights = weights_hash(model_path(new))
    if judged["hashes"]["new"] != weights:
        raise TenfoldError(f"The weights of {new} are not those that the gate has judged: judge it again.")
    if not judged["passed"]:
        raise TenfoldError(f"The gate refuses {new}: {judged['reason']}")
    now = released(home) or {"path": judged["old"], "sha256": judged["hashes"]["old"], "gate": None, "before": []}
    tried = now.pop("candidate", None)
    named = {"path": str(new.resolve()), "sha256": weights, "gate": file_sha256(new / "gate.json")}
    if share < 1:
        if now["sha256"] == weights:
            raise TenfoldError(f"{new} is in service already: give --share for another generation, which is tried beside it.")
        since = tried["since"] if tried is not None and tried["sha256"] == weights else time.time()
        now = {**now, "candidate": {**named, "share": share, "since": since}}
    elif now["sha256"] != weights:
        now = {**named, "before": [{key: now[key] for key in ("path", "sha256", "gate")}, *now["before"]]}
    return _put(home, now, server)


def rollback(home: Path, server: Server | None = None) -> dict[str, Any]:
    """End the trial of the candidate; where there is none, put the generation before in service again.

    Returns the new content of `release.json`. Raises TenfoldError where there is neither, the weights of the generation before
    have changed, or the server refuses.
    """
    now = released(home)
    if now is None or not (now["before"] or "candidate" in now):
        raise TenfoldError(f"There is nothing to go back to: {home / FILE} names no generation before.")
    if now.pop("candidate", None) is None:
        last, *others = now["before"]
        now = {**last, "before": others}
    if weights_hash(model_path(Path(now["path"]))) != now["sha256"]:
        raise TenfoldError(f"{now['path']} cannot be put in service again: its weights have changed since it was.")
    return _put(home, now, server)


def _put(home: Path, now: dict[str, Any], server: Server | None) -> dict[str, Any]:
    """Change the server, then the file: where the server fails, the file is unchanged and the command can be repeated."""
    if server is not None:
        server.serve(now)
    now = {"version": VERSION, **now}
    write_versioned(home / FILE, now)
    return now


def post(url: str, body: dict[str, Any], key: str = "") -> dict[str, Any]:
    """POST `body` as JSON with `key` as bearer token; returns the JSON answer.

    Raises TenfoldError where the server cannot be reached, refuses the request, or answers with something other than JSON.
    """
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    try:
        with urlopen(Request(url, json.dumps(body).encode(), headers), timeout=600) as answer:
            return json.load(answer)
    except HTTPError as error:
        raise TenfoldError(f"{url} refuses: {_reason(error)}") from None
    except OSError as error:
        raise TenfoldError(f"{url} cannot be reached: {error}.") from None
    except ValueError as error:
        raise TenfoldError(f"{url} gives no answer of a Tenfold server: {error}.") from None


def _reason(error: HTTPError) -> str:
    """The message of an error answer, or its status where a proxy has answered with a page of its own."""
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP status {error.code}."
