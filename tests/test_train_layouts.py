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
        {"dp_shard": 8}, {"cp": 8}, {"tp": 8}, {"dp_replicate": 2, "dp_shard": 4}, {"dp_replicate": 4, "dp_shard": 2},
        {"dp_shard": 4, "tp": 2}, {"dp_shard": 2, "cp": 4}, {"cp": 2, "tp": 4},
        {"dp_replicate": 2, "dp_shard": 2, "cp": 2}, {"dp_replicate": 2, "dp_shard": 2, "tp": 2},
        {"dp_replicate": 2, "cp": 2, "tp": 2}, {"dp_shard": 2, "cp": 2, "tp": 2},
    ],
    "uneven": [
        {"dp_replicate": 2, "dp_shard": 2, "tp": 2}, {"dp_shard": 4, "cp": 2}, {"dp_replicate": 2, "dp_shard": 2, "cp": 2},
    ],
    "experts": [
        {"dp_shard": 2, "cp": 2, "tp": 2}, {"dp_replicate": 2, "dp_shard": 2, "cp": 2}, {"dp_shard": 8, "ep": 4},
        {"dp_replicate": 2, "dp_shard": 4, "ep": 4}, {"dp_shard": 2, "cp": 4, "ep": 4},
        {"dp_replicate": 2, "dp_shard": 2, "cp": 2, "ep": 2}, {"dp_shard": 2, "tp": 4, "ep": 4},
        {"dp_replicate": 2, "cp": 2, "tp": 2, "ep": 4},
    ],
    "deep": [
        {"pp": 8}, {"pp": 2, "dp_shard": 4}, {"pp": 2, "dp_replicate": 2, "dp_shard": 2},
        {"pp": 2, "dp_shard": 2, "tp": 2}, {"pp": 2, "cp": 2, "tp": 2},
        {"pp": 4, "dp_shard": 2, "schedule": "interleaved"},
        {"pp": 2, "dp_shard": 2, "tp": 2, "schedule": "interleaved"},
        {"pp": 2, "dp_shard": 2, "cp": 2, "schedule": "zero_bubble"},
        {"pp": 4, "tp": 2, "schedule": "zero_bubble"},
    ],
    "deep-tied": [
        {"pp": 8}, {"pp": 2, "dp_shard": 2, "tp": 2}, {"pp": 4, "dp_shard": 2, "schedule": "interleaved"},
        {"pp": 2, "dp_replicate": 2, "cp": 2, "schedule": "zero_bubble"},
    ],
    "deep-experts": [
        {"pp": 2, "dp_shard": 4, "ep": 4}, {"pp": 2, "dp_shard": 2, "cp": 2, "ep": 2},
        {"pp": 2, "dp_shard": 2, "tp": 2, "ep": 4}, {"pp": 2, "dp_replicate": 2, "dp_shard": 2, "ep": 2},
        {"pp": 4, "dp_shard": 2, "ep": 2, "schedule": "interleaved"},
        {"pp": 2, "cp": 2, "tp": 2, "ep": 2, "schedule": "zero_bubble"},
    ],
}  # fmt: skip
AT_ONCE = 6  # runs of one set of processes: groups of processes that are over still have threads


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", MODELS)
def test_layouts_of_eight_processes_have_the_numbers_of_one(corpus, tmp_path, name):
    run_on(1, corpus, tmp_path, [("alone", MODELS[name])])
    jobs = [(f"layout-{i}", {**MODELS[name], "parallel": layout}) for i, layout in enumerate(LAYOUTS[name])]
    for first in range(0, len(jobs), AT_ONCE):
        run_on(8, corpus, tmp_path, jobs[first : first + AT_ONCE])
    for directory, _ in jobs:
        check(tmp_path / "alone", tmp_path / directory)
