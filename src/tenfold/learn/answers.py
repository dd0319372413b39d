"""Greedy answers of a model, from the serving engine, and the negative log-likelihood in nats that it gives to other answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tenfold.data.conversations.chats import Chat
from tenfold.data.conversations.packing import pack
from tenfold.data.conversations.tokens import ChatEncoder
from tenfold.model.io.huggingface import read_model
from tenfold.model.llama import Llama
from tenfold.serve.engine.build import make_engine
from tenfold.serve.options import EngineOptions
from tenfold.serve.request import Request, Sampling
from tenfold.spec.errors import TenfoldError

CACHE_GIB = 0.25  # of the engine's KV cache


@dataclass(frozen=True)
class Answer:
    """The text of an answer; `stopped` is true where the model ended it with a stop token, false where `max_tokens` cut it."""

    text: str
    stopped: bool


def answers(model: Path, prompts: Sequence[Chat], max_tokens: int) -> list[Answer]:
    """The greedy answer to each prompt, of at most `max_tokens` tokens. Raises TenfoldError where the engine cannot answer."""
    encoder = ChatEncoder.of(model)
    sampling = Sampling(temperature=0, max_tokens=max_tokens, stop_tokens=frozenset(encoder.vocabulary.stop_tokens))
    tokens: dict[str, list[int]] = {str(i): [] for i in range(len(prompts))}
    stopped = dict.fromkeys(tokens, False)
    engine = make_engine(EngineOptions(model, kv_cache_gib=CACHE_GIB, speculate=False))
    for i, prompt in enumerate(prompts):
        engine.add(Request(str(i), encoder.prompt(prompt), sampling))
    while engine.has_work:
        for output in engine.step():
            if output.error:
                raise TenfoldError(f"{model} cannot answer: {output.error}")
            tokens[output.request_id] += output.tokens
            stopped[output.request_id] |= output.finish_reason == "stop"
    return [Answer(encoder.tokenizer.decode(tokens[i]), stopped[i]) for i in tokens]


class Model:
    """A model under evaluation, read into memory once, in float32."""

    def __init__(self, path: Path):
        self.path, self.encoder = path, ChatEncoder.of(path)
        self.network: Llama = read_model(path)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.network.parameters())

    @torch.no_grad()
    def nats(self, chats: Sequence[Chat]) -> np.ndarray:
        """The negative log-likelihood of each chat's last answer in nats, float64 [chats].

        It is a sum over the tokens of the answer, so that models with different tokenizers can be compared.
        """
        encoded = [self.encoder.encode(chat, last_alone=True) for chat in chats]
        rows = [pack([one], len(one.tokens) - 1).rows for one in encoded]
        found = [self.network.loss(torch.from_numpy(row.tokens), torch.from_numpy(row.targets))[0] for row in rows]
        return np.array([float(nats) for nats in found])
