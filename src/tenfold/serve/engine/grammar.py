"""Grammars in the engine: compiled in a thread, once for all requests with the same grammar, and enforced by masks of the logits.

llguidance compiles the grammars and computes the masks.
"""

import os
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold.serve.sandbox.grammars import GrammarTokenizer, first_line
from tenfold.spec.errors import TenfoldError

_STACK = 16 * 2**20  # bytes, more than in the sandbox, so that what compiled there compiles here
_KEPT = 32  # compiled grammars


class GrammarCompiler:
    """Compiles grammars in a thread, so that steps go on meanwhile, and keeps the most recently used."""

    def __init__(self, tokenizer: GrammarTokenizer):
        self._tokenizer = tokenizer
        self._compiled: OrderedDict[str, Future[Any]] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, "grammars", _yield_to_steps)

    def compile(self, grammar: str) -> "Future[Any]":
        """A future of llguidance's matcher of a grammar; its exception is TenfoldError if the grammar cannot be used."""
        found = self._compiled.pop(grammar, None)
        if found is None:
            found = self._submit(grammar)
        self._compiled[grammar] = found
        if len(self._compiled) > _KEPT:
            self._compiled.popitem(last=False)
        return found

    def _submit(self, grammar: str) -> "Future[Any]":
        before = threading.stack_size(_STACK)  # for the pool's thread, which starts with the first task
        try:
            return self._thread.submit(self._tokenizer.compile, grammar)
        finally:
            threading.stack_size(before)


def _yield_to_steps() -> None:
    if hasattr(os, "PRIO_PROCESS"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)  # on Linux, of this thread only


class Matcher:
    """The position of one sequence in its grammar. The compiled grammar is copied at the first mask."""

    def __init__(self, compiled: Any):
        self._compiled = compiled
        self._matcher: Any = None

    def mask(self, logits: Tensor) -> Tensor:
        """`logits` [vocab], minus infinity for tokens that the grammar forbids. Raises TenfoldError if the matcher fails."""
        self._matcher = self._matcher or self._compiled.deep_copy()
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        allowed = torch.from_numpy(bits[: len(logits)]).bool()
        self._check()
        return logits.masked_fill(~allowed, -torch.inf)

    def accept(self, token: int) -> bool:
        """Advance by a token; True if the text is complete. Raises TenfoldError if the matcher fails."""
        self._matcher.consume_token(token)
        self._check()
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise TenfoldError(f"The text could not follow its grammar: {first_line(self._matcher.get_error())}.")
