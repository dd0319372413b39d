"""Dry runs: what fake processes hold and send is what arithmetic says, and the planner's figures stand beside it."""

import json

import pytest
from run_configs import run_config

from tenfold.circle.dry_run import beside_the_plan
from tenfold.circle.layout import with_layout
from tenfold.cli.commands import run as tenfold
from tenfold.spec.errors import TenfoldError
from tenfold.spec.layout import for_world
from tenfold.spec.model import ModelSpec
from tenfold.train.dry_run import dry_run

MODEL = {"name": "small", "dim": 64, "n_layers": 3, "n_heads": 4, "n_kv_heads": 4, "ffn_dim": 128}
RUN = {"tokens": 10**6, "model": MODEL, "seq_len": 64, "batch_size": 32, "micro_batch": 1, "optimizer": "adamw", "vocab_size": 256}
EXPERTS = {"family": "llama4", "n_experts": 8, "expert_ffn_dim": 1024, "nope_every": 4}
SPEC = ModelSpec(vocab_size=256, **MODEL)
GIB = 2**30


def run(world, **fields):
    return dry_run(run_config(**{**RUN, **fields}), world)


def test_sharded_weights_are_gathered_and_reduced_as_often_as_the_batch_has_parts():
    total, tables = SPEC.parameters().total, 2 * 256 * 64 + 64  # FSDP keeps the tables and the last norm over a step's part
    for batch, parts in ((4, 1), (8, 2), (32, 8)):
        found = run(4, batch_size=batch, parallel={"dp_shard": 4})
        rank = found.ranks[0]
        gathers, reduces = 2 * (2 * total - tables), 4 * total  # in bfloat16, in float32
        assert rank.sent_gib["dp_shard"] * GIB == pytest.approx(parts * (gathers + reduces) * 3 / 4, rel=0.01)
        assert rank.parts_gib["parameters"] * GIB == pytest.approx(4 * total / 4, rel=0.01)
        assert rank.parts_gib["optimizer"] * GIB == pytest.approx(8 * total / 4, rel=0.01)
        plan = beside_the_plan(found, "h100")
        assert plan["plan_sent_gib"]["dp_shard"] == pytest.approx(rank.sent_gib["dp_shard"], rel=0.15)


def test_copies_are_summed_once_a_step_and_hold_the_same():
    one, many = (run(8, batch_size=batch, parallel={"dp_replicate": 2, "dp_shard": 4}).ranks[0] for batch in (8, 64))
    owned = 4 * SPEC.parameters().total / 4
    assert one.sent_gib["dp_replicate"] * GIB == pytest.approx(2 * owned / 2, rel=0.01)
    assert many.sent_gib["dp_replicate"] == pytest.approx(one.sent_gib["dp_replicate"])
    assert many.sent_gib["dp_shard"] == pytest.approx(8 * one.sent_gib["dp_shard"])


def test_tensor_and_context_parallel_divide_activations_and_send_them():
    layouts = ({"dp_shard": 2}, {"tp": 2}, {"cp": 2})
    alone, tensor, context = (run(2, batch_size=2, micro_batch=2, parallel=layout).ranks[0] for layout in layouts)
    assert not alone.sent_gib.get("tp") and not alone.sent_gib.get("cp")
    activations = 2 * 2 * 64 * 64  # bfloat16 rows, positions, width
    ways = SPEC.n_layers * 4 * 2 / 2  # into and out of attention and feed-forward, forward and backward, half of it sent
    assert tensor.sent_gib["tp"] * GIB > 0.9 * ways * activations
    # Everyone's keys and values: gathered once, and their gradients scattered. All of the world is one group, named dp_shard.
    more = (context.sent_gib["dp_shard"] - alone.sent_gib["dp_shard"]) * GIB
    assert more == pytest.approx(SPEC.n_layers * 2 * 2 * activations / 2, rel=0.1)


def test_a_pipeline_sends_hidden_states_there_and_their_gradients_back_and_gathers_once():
    first, middle, last = run(8, model={**MODEL, "n_layers": 8}, batch_size=16, parallel={"pp": 4, "dp_shard": 2}).ranks
    hidden = 2 * 64 * 64  # of a row, in bfloat16
    assert [r.sent_gib["pp"] * GIB for r in (first, middle, last)] == [8 * hidden, 2 * 8 * hidden, 8 * hidden]
    layer = (SPEC.parameters().total - 2 * 256 * 64 - 64) / SPEC.n_layers
    assert middle.sent_gib["dp_shard"] * GIB == pytest.approx((2 + 4) * 2 * layer / 2, rel=0.01)  # gathered, and gradients summed
    assert middle.parts_gib["parameters"] * GIB == pytest.approx(4 * 2 * layer / 2, rel=0.01)
    assert [r.rank for r in (first, middle, last)] == [0, 2, 7]


@pytest.mark.slow
def test_muon_holds_a_few_whole_matrices_and_not_those_of_all_layers(monkeypatch):
    def held(layers):
        fields = {"model": {**MODEL, "dim": 256, "ffn_dim": 1024, "n_layers": layers}, "vocab_size": 64, "seq_len": 16}
        rank = run(4, optimizer="muon", batch_size=4, parallel={"dp_shard": 4}, **fields).ranks[0]
        return GIB * (rank.memory_gib - sum(rank.parts_gib[part] for part in ("parameters", "optimizer")))

    monkeypatch.setattr("tenfold.train.optim.muon.TOGETHER_BYTES", 4 * 256 * 1024)
    more = held(6) - held(2)
    matrices = 4 * 4 * (2 * 256 * 256 + 2 * 256 * 256 + 3 * 256 * 1024)  # bytes of those of four layers, in float32
    assert more < 0.5 * matrices  # each process's share of the gradients is a quarter


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "stages"), [("1f1b", 1), ("interleaved", 2)])
def test_a_pipeline_sends_of_each_row_the_same_and_holds_no_more_of_many_rows_than_of_a_few(schedule, stages):
    fields = {"model": {**MODEL, "n_layers": 8}, "micro_batch": 1, "vocab_size": 64}
    layout = {"pp": 4, "tp": 2, "schedule": schedule}
    few, more, many = (run(8, batch_size=rows, parallel=layout, **fields).ranks for rows in (8, 12, 512))
    hidden = 2 * 64 * 64 / 2  # bytes of a row between stages; of each that it has seen, PyTorch's tracker itself keeps one
    for a, b, c in zip(few, more, many, strict=True):
        for name in ("pp", "tp"):  # by row; weights are gathered once a step
            row = (b.sent_gib[name] - a.sent_gib[name]) / 4
            assert row > 0 and c.sent_gib[name] == pytest.approx(b.sent_gib[name] + (512 - 12) * row, rel=1e-9)
        assert (b.memory_gib - a.memory_gib) * GIB < 4 * stages * 1.5 * hidden
        assert (c.memory_gib - b.memory_gib) * GIB < 8 * stages * 1.5 * hidden


def test_recompute_trades_memory_and_the_fullest_rank_is_the_first():
    kept, again = (run(4, batch_size=32, micro_batch=8, activation_checkpointing=what) for what in ("none", "full"))
    assert again.ranks[0].memory_gib < kept.ranks[0].memory_gib
    assert [rank.rank for rank in kept.ranks] == [0, 3]
    assert kept.ranks[0].memory_gib >= kept.ranks[1].memory_gib


@pytest.mark.parametrize(
    ("more", "layout", "what"),
    [
        ({}, {"dp_shard": 8}, "none"),
        ({}, {"dp_shard": 4, "cp": 2}, "selective"),
        ({}, {"dp_shard": 4, "tp": 2}, "full"),
        pytest.param(EXPERTS, {"dp_shard": 8, "ep": 4}, "full", marks=pytest.mark.slow),
        pytest.param(EXPERTS, {"dp_shard": 4, "tp": 2, "ep": 4}, "none", marks=pytest.mark.slow),
        pytest.param(EXPERTS, {"dp_shard": 4, "tp": 2}, "full", marks=pytest.mark.slow),
        ({**EXPERTS, "n_experts": 4}, {"dp_shard": 8}, "none"),
        pytest.param({}, {"pp": 4, "tp": 2}, "selective", marks=pytest.mark.slow),
        ({}, {"pp": 2, "dp_shard": 4, "schedule": "interleaved"}, "none"),
        ({"tied": True}, {"pp": 2, "dp_shard": 4, "schedule": "zero_bubble"}, "full"),
        pytest.param(EXPERTS, {"pp": 2, "dp_shard": 2, "tp": 2, "ep": 2}, "full", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_the_planner_is_within_a_tenth(more, layout, what):
    model = {"name": "middle", "dim": 1024, "n_layers": 8, "n_heads": 8, "n_kv_heads": 4, "ffn_dim": 4096, **more}
    fields = {
        **RUN,
        "model": model,
        "vocab_size": 32000,
        "seq_len": 2048,
        "batch_size": 16,
        "parallel": layout,
        "activation_checkpointing": what,
    }
    off = beside_the_plan(dry_run(run_config(**fields), 8), "h100")["difference_pct"]
    assert abs(off["memory"]) < 10 and abs(off["sent"]) < 0.1


def test_the_command_prints_json_and_says_what_it_needs(tmp_path, capsys):
    path = tmp_path / "run.toml"
    path.write_text('tokens = 1000000\nmodel = { width = 64 }\n[data]\nseq_len = 64\nbatch_size = 8\n[optimizer]\nname = "adamw"\n')
    tenfold(["train", str(path), "--dry-run", "--world", "2", "--json", "--parallel.dp-shard", "2"])
    found = json.loads(capsys.readouterr().out)
    assert found["world"] == 2 and found["ranks"][0]["memory_gib"] > 0 and set(found["difference_pct"]) == {"memory", "sent"}
    with pytest.raises(TenfoldError, match="= 2 processes, but there are 3"):
        run(3, parallel={"dp_shard": 2})


def test_auto_is_the_planners_layout_and_one_that_the_trainer_knows():
    auto = run_config(**{**RUN, "model": "llama-3.1-70b", "seq_len": 8192, "batch_size": 512, "tokens": 10**8, "parallel": "auto"})
    chosen = with_layout(auto, 256, "h100")
    layout = for_world(chosen.parallel, 256)
    assert layout.dp_shard * layout.tp * layout.pp > 1  # 70B fits on no one GPU
    assert chosen.data.batch_size % (layout.dp * layout.micro_batch) == 0
    assert with_layout(run_config(**{**RUN, "parallel": {"dp_shard": 4}}), 4, "h100").parallel.dp_shard == 4
    with pytest.raises(TenfoldError, match="does not fit on 2 x"):
        with_layout(auto, 2, "h100")
