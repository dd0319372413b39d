"""The release: a file in the home that names the generation in service, and those that were before it."""

import json
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tenfold.learn.data import VERSION, write_versioned
from tenfold.learn.gate import read_gate
from tenfold.model.io.huggingface import weights_hash
from tenfold.model.path import model_path
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import file_sha256
from tenfold.spec.versions import read_document

FILE = "release.json"


def released(home: Path) -> dict[str, Any] | None:
    """`path` of the generation in service with the `sha256` of its weights, and `before` it the others, newest first."""
    return read_document(home / FILE, VERSION, "release a generation anew") if (home / FILE).exists() else None


def release(new: Path, home: Path) -> dict[str, Any]:
    """Put `new` in service. Raises TenfoldError where its gate has not let it pass, or not these very weights."""
    judged = read_gate(new)
    weights = weights_hash(model_path(new))
    if judged["hashes"]["new"] != weights:
        raise TenfoldError(f"The weights of {new} are not those that the gate has judged: judge it again.")
    if not judged["passed"]:
        raise TenfoldError(f"The gate refuses {new}: {judged['reason']}")
    now = released(home)
    if now is None:
        now = {"path": judged["old"], "sha256": judged["hashes"]["old"], "gate": None, "before": []}
    if now["sha256"] == weights:
        return now
    before = [{key: now[key] for key in ("path", "sha256", "gate")}, *now["before"]]
    return _write(home, {"path": str(new.resolve()), "sha256": weights, "gate": file_sha256(new / "gate.json"), "before": before})


def rollback(home: Path) -> dict[str, Any]:
    """Put the generation before in service again. Raises TenfoldError where there is none, or its weights have changed."""
    now = released(home)
    if now is None or not now["before"]:
        raise TenfoldError(f"There is nothing to go back to: {home / FILE} names no generation before.")
    last, *others = now["before"]
    if weights_hash(model_path(Path(last["path"]))) != last["sha256"]:
        raise TenfoldError(f"{last['path']} is not what was in service: its weights have changed.")
    return _write(home, {**last, "before": others})


def _write(home: Path, now: dict[str, Any]) -> dict[str, Any]:
    write_versioned(home / FILE, now)
    return {"version": VERSION, **now}


def swap(server: str, path: Path, key: str = "") -> None:
    """Let a running server answer with the model at `path` in place of its first. Returns when it does."""
    post(f"{server}/v1/models/swap", {"path": str(model_path(path).resolve())}, key)


def post(url: str, body: dict[str, Any], key: str = "") -> dict[str, Any]:
    """What a server answers. Raises TenfoldError where it cannot be reached, or refuses."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    try:
        with urlopen(Request(url, json.dumps(body).encode(), headers), timeout=600) as answer:
            return json.load(answer)
    except HTTPError as error:
        raise TenfoldError(f"{url} refuses: {json.load(error)['error']['message']}") from None
    except OSError as error:
        raise TenfoldError(f"{url} cannot be reached: {error}.") from None
