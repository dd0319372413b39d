"""Open an export in its target tool, if that is installed, and compare the tool's results with this package's for the same file."""

import json
import logging
import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path

import torch
from tokenizers import Tokenizer

from tenfold.model.io.compare import Answer
from tenfold.model.io.gguf_tokenizer import read_gguf_text_fields
from tenfold.model.io.tokenizer import has_tokenizer, read_tokenizer, read_vocabulary
from tenfold.spec.errors import TenfoldError

_AT_MOST = 3  # prompts for llama.cpp
# Allowed differences of log-probabilities, in nats. For quantised matrices, llama.cpp also rounds the activations to 8 bits.
_PLAIN_SLACK, _ROUNDED_SLACK = 0.05, 1.0


def open_in_llamacpp(file: Path, ours: list[Answer], plain: bool) -> str:
    """Compare llama.cpp's greedy answers from a GGUF file with `ours`, this package's. Returns a note for the user.

    `plain`: the file is not quantised. Raises TenfoldError if llama.cpp cannot read the file, tokenizes a prompt differently, or
    chooses a token that is less likely here by more than rounding explains.
    """
    if find_spec("xllamacpp") is None:
        return "It was not opened in llama.cpp: pip install xllamacpp."
    if not read_gguf_text_fields(file).get("tokens"):
        return "It was not opened in llama.cpp, because the model has no tokenizer."
    ours = ours[:_AT_MOST]
    asked = json.dumps([[answer.prompt, len(answer.said)] for answer in ours])
    command = [sys.executable, "-m", "tenfold.model.io.ask_llamacpp", str(file.absolute())]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, input=asked, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise TenfoldError(f"llama.cpp cannot open {file}: {last}.")
    theirs = json.loads(done.stdout.splitlines()[-1])
    tokenizer, stops = read_tokenizer(file), read_vocabulary(file).stop_tokens
    equal = 0
    for answer, (count, told) in zip(ours, theirs, strict=True):
        if count != answer.begin:
            raise TenfoldError(
                f"llama.cpp makes {count} tokens of {answer.prompt!r} and this package {answer.begin}: nothing is exported."
            )
        said = shown(answer, tokenizer, stops)
        _require_near(answer, said, told, _PLAIN_SLACK if plain else _ROUNDED_SLACK)
        equal += told[: len(said)] == said
    return f"llama.cpp opens it: {equal} of {len(ours)} greedy answers are equal to ours, token for token."


def shown(answer: Answer, tokenizer: Tokenizer, stops: frozenset[int]) -> list[int]:
    """The tokens of an answer before the first that ends it or is only part of a character: llama.cpp reports neither kind."""
    return list(takewhile(lambda token: token not in stops and "\ufffd" not in tokenizer.decode([token]), answer.said))


def _require_near(answer: Answer, said: list[int], told: list[int], slack: float) -> None:
    """Raises TenfoldError if the first token that differs is less likely here than ours by more than `slack` nats."""
    for at, (mine, other) in enumerate(zip(said, told, strict=False), answer.begin - 1):
        if mine != other:
            gap = float(answer.log_probs[at, mine] - answer.log_probs[at, other])
            if gap > slack:
                words = f"with a token that is less likely here by {gap:.2f} nats"
                raise TenfoldError(f"llama.cpp answers {answer.prompt!r} {words}: nothing is exported.")
            return


def open_in_transformers(directory: Path, ours: list[Answer]) -> str:
    """Compare the tokens and log-probabilities of `transformers` with `ours`, this package's. Returns a note for the user.

    Raises TenfoldError if they differ by more than rounding explains.
    """
    if find_spec("transformers") is None:
        return "It was not opened in transformers: pip install transformers."
    for other in ("torchao", "torch.utils._pytree"):  # transformers imports them, and they log warnings about missing kernels
        logging.getLogger(other).setLevel(logging.ERROR)
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory) if has_tokenizer(directory) else None
    worst = 0.0
    for answer in ours:
        if tokenizer and tokenizer(answer.prompt).input_ids[: answer.begin] != answer.tokens[: answer.begin]:
            raise TenfoldError(f"transformers tokenizes {answer.prompt!r} differently from this package: nothing is exported.")
        with torch.no_grad():
            logits = theirs(torch.tensor([answer.tokens])).logits[0].float().log_softmax(-1)
        worst = max(worst, float((logits - answer.log_probs).abs().max()))
    if worst > _PLAIN_SLACK:
        raise TenfoldError(f"transformers' log-probabilities differ from ours by up to {worst:.2g} nats: nothing is exported.")
    return f"transformers opens it: log-probabilities differ from ours by at most {worst:.1g} nats."
