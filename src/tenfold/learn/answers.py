"""What a model says: its greedy answers by the serving engine, and the nats that it gives to answers of others."""

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

CACHE_GIB = 0.25


@dataclass(frozen=True)
class Answer:
    """`stopped` says whether the model ended it by itself."""

    text: str
    stopped: bool


def answers(model: Path, prompts: Sequence[Chat], max_tokens: int) -> list[Answer]:
    """The greedy answer to each prompt. Raises TenfoldError where the engine cannot answer."""
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
    """A model that is judged: read once, in float32."""

    def __init__(self, path: Path):
        self.path, self.encoder = path, ChatEncoder.of(path)
        self.network: Llama = read_model(path)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.network.parameters())

    @torch.no_grad()
    def nats(self, chats: Sequence[Chat]) -> np.ndarray:
        """The nats of each chat's last answer, in the model's own tokens: comparable whatever these are."""
        encoded = [self.encoder.encode(chat, last_alone=True) for chat in chats]
        rows = [pack([one], len(one.tokens) - 1).rows for one in encoded]
        found = [self.network.loss(torch.from_numpy(row.tokens), torch.from_numpy(row.targets))[0] for row in rows]
        return np.array([float(nats) for nats in found])
