"""Layouts of eight processes, up to three ways at once, have the losses, gradients and weights of one process."""

import pytest
from test_train_parallelize import DENSE, ROUTED, RUN, check, run_on

WIDE, WIDE_ROUTED = ({**model, "n_heads": 8, "n_kv_heads": 8} for model in (DENSE, ROUTED))
MODELS = {
    "dense": {**RUN, "model": WIDE},
    "uneven": {**RUN, "model": WIDE, "batch_size": 11, "tokens": 20 * 11 * 64, "micro_batch": 1},
    "experts": {**RUN, "model": WIDE_ROUTED},
    "deep": {**RUN, "model": {**WIDE, "n_layers": 8}},
    "deep-tied": {**RUN, "model": {**WIDE, "n_layers": 8, "tied": True}},
    "deep-experts": {**RUN, "model": {**WIDE_ROUTED, "n_layers": 8, "moe_every": 2}},
}
LAYOUTS = {
    "dense": [
        {"shard": 8}, {"context": 8}, {"tensor": 8}, {"replicate": 2, "shard": 4}, {"replicate": 4, "shard": 2},
        {"shard": 4, "tensor": 2}, {"shard": 2, "context": 4}, {"context": 2, "tensor": 4},
        {"replicate": 2, "shard": 2, "context": 2}, {"replicate": 2, "shard": 2, "tensor": 2},
        {"replicate": 2, "context": 2, "tensor": 2}, {"shard": 2, "context": 2, "tensor": 2},
    ],
    "uneven": [
        {"replicate": 2, "shard": 2, "tensor": 2}, {"shard": 4, "context": 2}, {"replicate": 2, "shard": 2, "context": 2},
    ],
    "experts": [
        {"shard": 2, "context": 2, "tensor": 2}, {"replicate": 2, "shard": 2, "context": 2}, {"shard": 8, "expert": 4},
        {"replicate": 2, "shard": 4, "expert": 4}, {"shard": 2, "context": 4, "expert": 4},
        {"replicate": 2, "shard": 2, "context": 2, "expert": 2}, {"shard": 2, "tensor": 4, "expert": 4},
        {"replicate": 2, "context": 2, "tensor": 2, "expert": 4},
    ],
    "deep": [
        {"pipeline": 8}, {"pipeline": 2, "shard": 4}, {"pipeline": 2, "replicate": 2, "shard": 2},
        {"pipeline": 2, "shard": 2, "tensor": 2}, {"pipeline": 2, "context": 2, "tensor": 2},
        {"pipeline": 4, "shard": 2, "schedule": "interleaved"},
        {"pipeline": 2, "shard": 2, "tensor": 2, "schedule": "interleaved"},
        {"pipeline": 2, "shard": 2, "context": 2, "schedule": "zero-bubble"},
        {"pipeline": 4, "tensor": 2, "schedule": "zero-bubble"},
    ],
    "deep-tied": [
        {"pipeline": 8}, {"pipeline": 2, "shard": 2, "tensor": 2}, {"pipeline": 4, "shard": 2, "schedule": "interleaved"},
        {"pipeline": 2, "replicate": 2, "context": 2, "schedule": "zero-bubble"},
    ],
    "deep-experts": [
        {"pipeline": 2, "shard": 4, "expert": 4}, {"pipeline": 2, "shard": 2, "context": 2, "expert": 2},
        {"pipeline": 2, "shard": 2, "tensor": 2, "expert": 4}, {"pipeline": 2, "replicate": 2, "shard": 2, "expert": 2},
        {"pipeline": 4, "shard": 2, "expert": 2, "schedule": "interleaved"},
        {"pipeline": 2, "context": 2, "tensor": 2, "expert": 2, "schedule": "zero-bubble"},
    ],
}  # fmt: skip
AT_ONCE = 6  # runs of one set of processes: groups of processes that are over still have threads


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", MODELS)
def test_layouts_of_eight_processes_have_the_numbers_of_one(corpus, tmp_path, name):
    run_on(1, corpus, tmp_path, [("alone", MODELS[name])])
    jobs = [(f"layout-{i}", {**MODELS[name], "layout": layout}) for i, layout in enumerate(LAYOUTS[name])]
    for first in range(0, len(jobs), AT_ONCE):
        run_on(8, corpus, tmp_path, jobs[first : first + AT_ONCE])
    for directory, _ in jobs:
        check(tmp_path / "alone", tmp_path / directory)
