"""Pipelines: what is cut is the whole model once, and hidden states go from stage to stage. (Their numbers: test_train_parallelize.)"""

from dataclasses import replace

import pytest
import torch
from processes import run_together
from run_configs import run_config

from tenfold.data.text.corpus import open_corpus
from tenfold.model.llama import Llama
from tenfold.spec.layout import Layout
from tenfold.spec.model import ModelSpec
from tenfold.train.metrics import read_metrics
from tenfold.train.parallel.pipeline import cut
from tenfold.train.task import LossSums, TaskBase
from tenfold.train.tasks.pretrain import pretrain

SPEC = ModelSpec("deep", dim=16, n_layers=7, n_heads=2, n_kv_heads=2, ffn_dim=32, vocab_size=50)


class NextToken(TaskBase):
    def loss(self, model, batch):
        return LossSums(*model.loss(batch.tokens, batch.targets))


@pytest.mark.parametrize("schedule, processes", [("1f1b", 2), ("1f1b", 7), ("interleaved", 2), ("zero_bubble", 3)])
@pytest.mark.parametrize("tied", [False, True], ids=["two tables", "tied"])
def test_the_stages_hold_every_weight_once_and_compute_the_models_loss(schedule, processes, tied):
    torch.manual_seed(0)
    spec = replace(SPEC, tied=tied)
    whole = Llama(spec)
    names, stages, parts = [], {}, []
    for rank in range(processes):
        part = Llama(spec)
        part.load_state_dict(whole.state_dict())
        stages |= cut(part, Layout(pp=processes, schedule=schedule), rank)
        names += [name for name, _ in part.named_parameters()]
        parts.append(part)
    both_ends = ["embedding.weight"] if tied else []
    assert sorted(names) == sorted(both_ends + [name for name, _ in whole.named_parameters()])
    tokens = torch.randint(0, 50, (3, 8))
    x = tokens
    for _, stage in sorted(stages.items()):
        x = stage(x, 8, tokens.roll(-1, 1), task=NextToken())
    assert x[0, 0].item() == pytest.approx(whole.loss(tokens, tokens.roll(-1, 1))[0].item(), rel=1e-6)


def train_in_half_precision(corpus, folder, layouts):
    for name, layout in layouts.items():
        fields = {"tokens": 10 * 8 * 64, "seq_len": 64, "batch_size": 8, "dtype": "bfloat16", "device": "cpu", "log_every": 1}
        model = {"dim": 32, "n_layers": 4, "n_heads": 2, "n_kv_heads": 2, "ffn_dim": 64}
        config = run_config(**{**fields, "model": model, "evaluate_tokens": 1024, "parallel": layout})
        pretrain(config, open_corpus(corpus), folder / name, quiet=True)


def test_hidden_states_travel_in_the_format_of_the_products(corpus, tmp_path):
    layouts = {
        "sharded": {"dp_shard": 4}, "line": {"pp": 4}, "both": {"pp": 2, "tp": 2, "schedule": "zero_bubble"},
    }  # fmt: skip
    run_together(4, train_in_half_precision, corpus.directory, tmp_path, layouts)
    losses = [[e["loss"] for e in read_metrics(tmp_path / name / "run.jsonl") if e["event"] == "step"] for name in layouts]
    assert losses[0][-1] < losses[0][0] - 0.05
    for of_pipeline in losses[1:]:
        assert of_pipeline == pytest.approx(losses[0], rel=3e-3)
