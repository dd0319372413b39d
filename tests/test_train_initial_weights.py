"""First weights in shares: to the bit those of one process, with no process ever holding the whole model."""

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import run_together

from tenfold.model.io.huggingface import write_model
from tenfold.spec.errors import TenfoldError
from tenfold.spec.layout import Layout
from tenfold.spec.model import ModelSpec
from tenfold.train import initial_weights as start
from tenfold.train.parallel.parallelize import parallelize
from tenfold.train.parallel.processes import start_processes
from tenfold.train.task import TaskBase

SHAPE = {"dim": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": 4, "ffn_dim": 64, "vocab_size": 98}
EXPERTS = {"family": "llama4", "n_experts": 4, "expert_ffn_dim": 32, "moe_every": 2, "attention_chunk": 8, "nope_every": 2}
DENSE, TIED, ROUTED = ModelSpec("a", **SHAPE), ModelSpec("b", tied=True, **SHAPE), ModelSpec("c", **SHAPE, **EXPERTS)
CASES = [
    (DENSE, {"dp_shard": 4}), (DENSE, {"dp_shard": 2, "tp": 2}), (TIED, {"dp_replicate": 2, "dp_shard": 2}), (ROUTED, {"tp": 2, "cp": 2}),
    (ROUTED, {"dp_shard": 4, "ep": 2}), (DENSE, {"dp_shard": 2, "pp": 2}), (ROUTED, {"dp_shard": 2, "pp": 2, "ep": 2}),
    (TIED, {"dp_shard": 2, "pp": 2}),
]  # fmt: skip
CPU, META = torch.device("cpu"), torch.device("meta")


def in_shares(spec, fields, seed, init_from=None):
    torch.manual_seed(seed)
    model = start.build(spec, init_from, META)
    parallelize(model, TaskBase(), Layout(seq_len=16, global_batch=8, **fields), CPU)
    start.give_shares(model, init_from, CPU)
    return model


def assert_alike(model, whole):
    ours = dict(whole.named_parameters())
    held = [set()] * dist.get_world_size()  # stages of a pipeline have different ones
    dist.all_gather_object(held, {name for name, _ in model.named_parameters()})
    assert set.union(*held) == ours.keys()
    for name, p in model.named_parameters():
        assert torch.equal(p.full_tensor(), ours[name]), name
    theirs = dict(whole.named_buffers())
    assert all(torch.equal(buffer, theirs[name]) for name, buffer in model.named_buffers())
    assert not whole.spec.tied or model.head is None or model.head.weight is model.embedding.weight
    assert all(p.to_local().untyped_storage().nbytes() <= p.nbytes / 2 + 512 for p in model.parameters())


def draw_and_read(folder):
    start_processes()
    for spec, fields in CASES:
        model = in_shares(spec, fields, 5)
        after = torch.rand(4)
        torch.manual_seed(5)
        whole = start.build(spec, None, CPU)
        assert_alike(model, whole)
        assert torch.equal(after, torch.rand(4))  # the generator stands where it would
        if dist.get_rank() == 0:
            write_model(whole, folder / spec.name)
        dist.barrier()
        assert_alike(in_shares(spec, fields, 6, str(folder / spec.name)), whole)


def test_weights_drawn_or_read_in_shares_are_those_of_one_process(tmp_path):
    run_together(4, draw_and_read, tmp_path)


def peak_of_the_start(spec):
    start_processes()
    in_shares(ModelSpec("warm", **SHAPE), {"dp_shard": 4}, 1)

    def memory(key):
        return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    model = in_shares(spec, {"dp_shard": 4}, 1)
    most, whole = memory("VmHWM") - before, 4 * spec.parameters().total
    assert sum(p.to_local().nbytes for p in model.parameters()) == pytest.approx(whole / 4, rel=0.01)
    assert most < 0.5 * whole, (most, whole)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells")
def test_no_process_ever_holds_more_than_its_share_and_one_part():
    run_together(
        4, peak_of_the_start, ModelSpec("large", dim=512, n_layers=16, n_heads=8, n_kv_heads=8, ffn_dim=1536, vocab_size=400)
    )


def test_stored_weights_that_do_not_fit_are_one_sentence(tmp_path):
    write_model(start.build(DENSE, None, CPU), tmp_path)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(TenfoldError, match="damaged or cut short"):
        next(start.read_parts(tmp_path))
