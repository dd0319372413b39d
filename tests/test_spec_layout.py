"""The layout that trainer and planner share: sizes that multiply, and one sentence for what cannot be built."""

from dataclasses import replace

import pytest

from tenfold.spec.errors import TenfoldError
from tenfold.spec.layout import Layout, check, for_world, stage_layers
from tenfold.spec.model import published_model

DENSE = published_model("llama-3.1-8b")
EXPERTS = replace(DENSE, family="llama4", n_experts=16, expert_ffn_dim=2048)


def test_dp_shard_takes_what_the_others_leave():
    layout = for_world(Layout(tp=2, cp=2, pp=2, dp_replicate=2), 64)
    assert (layout.dp_shard, layout.dp, layout.shards, layout.replicas, layout.world) == (4, 8, 8, 16, 64)
    with pytest.raises(TenfoldError, match="pp 2 x dp_replicate 1 x dp_shard 1 x cp 1 x tp 4 = 8 processes, but there are 12"):
        for_world(Layout(tp=4, pp=2), 12)


@pytest.mark.parametrize(
    ("rows", "layout", "together", "parts"),
    [
        (24, Layout(dp_shard=2), 12, 1),
        (24, Layout(dp_shard=2, micro_batch=5), 5, 3),
        (24, Layout(dp_shard=2, pp=4), 3, 4),
        (6, Layout(dp_shard=2, pp=4), 1, 3),
    ],
)
def test_rows_go_through_in_parts(rows, layout, together, parts):
    layout = layout.replace(global_batch=rows)
    assert (layout.rows_together, layout.micro_batches) == (together, parts)


@pytest.mark.parametrize(
    ("changes", "spec", "says"),
    [
        ({"tp": 8, "pp": 4, "dp_shard": 4, "global_batch": 32}, DENSE, ""),
        ({"tp": 4, "dp_shard": 4, "ep": 16, "global_batch": 4}, EXPERTS, ""),
        ({"dp_shard": 8, "global_batch": 6}, DENSE, "divides 6 rows a step over 8 processes"),
        ({"cp": 3}, DENSE, "cannot divide seq_len 8192 by 3"),
        ({"tp": 16}, DENSE, "cannot divide n_kv_heads 8 by 16"),
        ({"tp": 2, "dp_shard": 5, "global_batch": 5}, DENSE, "cannot divide dim 4096 by 5"),
        ({"tp": 2, "dp_shard": 5, "global_batch": 5, "zero": 1}, DENSE, ""),
        ({"pp": 25, "schedule": "interleaved", "virtual_stages": 7}, DENSE, "cannot cut 32 layers into 175 stages"),
        ({"pp": 4, "virtual_stages": 2}, DENSE, "has one stage on each rank, not virtual_stages = 2"),
        ({"ep": 2, "dp_shard": 2, "global_batch": 2}, DENSE, "only a model with experts"),
        ({"ep": 32, "dp_shard": 32, "global_batch": 32}, EXPERTS, "cannot divide n_experts 16 by 32"),
        ({"ep": 4, "dp_shard": 6, "global_batch": 6}, EXPERTS, "cannot divide dp_shard x cp x tp 6 by 4"),
        ({"dp_shard": 4, "global_batch": 6}, EXPERTS, "needs a batch_size that 4 data parallel processes divide"),
        ({"pp": 4, "global_batch": 6, "micro_batch": 1}, EXPERTS, "sends a model with experts 4 rows at a time"),
        ({"tp": 4, "etp": 2, "dp_shard": 2, "global_batch": 2}, EXPERTS, "it must be 1 or tp = 4"),
    ],
)
def test_what_cannot_be_built_is_said_in_a_sentence(changes, spec, says):
    fault = check(Layout(**changes), spec)
    assert says in fault
    assert bool(says) == bool(fault)


def test_the_layers_of_stages_are_one_apart_and_fewest_at_the_ends():
    for layers, stages in ((7, 3), (126, 16), (5, 4), (8, 8)):
        parts = stage_layers(layers, stages)
        sizes = [len(part) for part in parts]
        assert [layer for part in parts for layer in part] == list(range(layers))
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) in (sizes[0], sizes[-1])
