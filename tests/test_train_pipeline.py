"""Pipelines: what is cut is the whole model once, and what cannot be cut is one sentence. (Their numbers: test_train_layout.)"""

import pytest
import torch

from tenfold.model.llama import Llama
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec
from tenfold.train.config import config_from_fields
from tenfold.train.dry_run import dry_run
from tenfold.train.pipeline import cut

SPEC = ModelSpec("deep", dim=16, n_layers=7, n_heads=2, n_kv_heads=2, ffn_dim=32, vocab_size=50)


@pytest.mark.parametrize("schedule, processes", [("1f1b", 2), ("1f1b", 7), ("interleaved", 2), ("zero-bubble", 3)])
def test_the_stages_hold_every_weight_once_and_compute_the_models_loss(schedule, processes):
    torch.manual_seed(0)
    whole = Llama(SPEC)
    names, stages, parts = [], {}, []
    for rank in range(processes):
        part = Llama(SPEC)
        part.load_state_dict(whole.state_dict())
        stages |= cut(part, processes, rank, schedule)
        names += [name for name, _ in part.named_parameters()]
        parts.append(part)
    assert sorted(names) == sorted(name for name, _ in whole.named_parameters())
    tokens = torch.randint(0, 50, (3, 8))
    x = tokens
    for _, stage in sorted(stages.items()):
        x = stage(x, 8, tokens.roll(-1, 1))
    assert x[0, 0].item() == pytest.approx(whole.loss(tokens, tokens.roll(-1, 1))[0].item(), rel=1e-6)


def test_what_cannot_be_cut_is_one_sentence():
    with pytest.raises(TenfoldError, match="cannot cut 7 layers into 8 stages: lower pipeline"):
        cut(Llama(SPEC), 4, 0, "interleaved")
    run = config_from_fields({"tokens": 10**6, "model": "llama-3.1-8b", "layout": {"pipeline": 2}}, "the test")
    with pytest.raises(TenfoldError, match="knows no pipelines yet"):
        dry_run(run, 4)
