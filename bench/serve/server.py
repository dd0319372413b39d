"""For benchmarks and tests over HTTP: `tenfold serve` as a user starts it, and a small model with random weights."""

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from bench.harness import TENFOLD
from tenfold.data.text.tokenizer import train_tokenizer, trained_vocabulary
from tenfold.model.io.huggingface import write_model
from tenfold.model.io.tokenizer import save_tokenizer
from tenfold.model.llama import Llama
from tenfold.spec.model import ModelSpec

SMALL_OPTIONS = ("--any-name", "--kv-cache-gib", "0.1", "--threads", "1")  # for a small model that answers to any name


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def serving(
    *arguments: str | Path, log: Path | None = None, environment: dict[str, str] | None = None, folder: Path | None = None
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run `tenfold serve`; its URL, once /health answers, and its process. The server is terminated afterwards.

    It runs in `folder`, with `environment` in place of this process's, and writes its output to `log`.
    """
    port = free_port()
    command = [*TENFOLD, "serve", *map(str, arguments), "--port", str(port)]
    with (log or Path(os.devnull)).open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=folder)
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process)
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.terminate()
            process.wait(120)


def wait_for(url: str, process: subprocess.Popen[bytes], seconds: float = 300) -> None:
    """Return when `url` answers. Raises SystemExit if the process ends first, or after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).read()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the server did not come up (exit {process.poll()})") from None
            time.sleep(0.05)


def small_model(directory: Path, context: int = 2048) -> Path:
    """Write a small model with random weights as a Hugging Face directory."""
    tokenizer = train_tokenizer(["hello there, how are you today? " * 20, "def f(x):\n    return x + 1\n" * 20], 300)
    spec = ModelSpec(
        name="small", dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=96, vocab_size=tokenizer.get_vocab_size() + 3,
        head_dim=16, context=context,
    )  # fmt: skip
    tokenizer.add_special_tokens(["<fim_prefix>", "<fim_suffix>", "<fim_middle>"])
    torch.manual_seed(0)
    write_model(Llama(spec), directory)
    save_tokenizer(tokenizer, trained_vocabulary(tokenizer.get_vocab_size()), directory)
    return directory
