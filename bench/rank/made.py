"""Rankers with random weights for any catalogue size, and a small HTTP client."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tenfold.data.interactions.interactions import write_names
from tenfold.model.build import make_model
from tenfold.model.io.huggingface import write_model
from tenfold.rank.family import rank_shape
from tenfold.spec.model import ModelSpec


def made_ranker(
    directory: Path, items: int, width: int = 64, history: int = 200, shape: Callable[[int, int], ModelSpec] = rank_shape
) -> Path:
    """A generation whose ranker has random weights; its items are named item-0 and so on."""
    torch.manual_seed(0)
    model = make_model(replace(shape(width, items + 1), context=history + 1))
    write_model(model, directory / "model")
    write_names([f"item-{i}" for i in range(items)], directory / "model")
    return directory


def ask(url: str, body: dict[str, Any] | None, method: str = "POST", key: str = "") -> tuple[int, dict[str, Any]]:
    """Send a request; the status and the JSON of the answer. Raises OSError if the server cannot be reached."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
