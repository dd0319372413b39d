"""What a ranking model says of histories."""

import numpy as np
import torch

from tenfold.data.interactions.interactions import last_inputs
from tenfold.model.llama import Llama
from tenfold.rank.metrics import Scorer


def scorer_of(model: Llama) -> Scorer:
    """The logits of every token after each history, of which the model sees the newest items of its context."""

    @torch.inference_mode()
    def scores(histories: list[list[int]]) -> np.ndarray:
        tokens, last = last_inputs(histories, min(model.spec.context, max(map(len, histories)) + 1))
        hidden = model.hidden(torch.from_numpy(tokens).to(model.embedding.weight.device))
        return model.head(hidden[torch.arange(len(last)), torch.from_numpy(last)]).float().cpu().numpy()

    return scores
