"""Checkpoints between layouts: what any layout saved, any other loads to the bit: weights, optimizers, step."""

import pytest
import torch
import torch.distributed as dist
from processes import run_together
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

from tenfold.model.build import make_model
from tenfold.model.io.huggingface import write_model
from tenfold.spec.layout import Layout
from tenfold.spec.model import ModelSpec
from tenfold.train import checkpoint
from tenfold.train.export import export_model
from tenfold.train.optim.hyperparameters import derive
from tenfold.train.optim.optimizer import make_optimizers
from tenfold.train.parallel.gradients import clip_gradient
from tenfold.train.parallel.parallelize import parallelize
from tenfold.train.parallel.processes import start_processes
from tenfold.train.task import Batch, LossSums, TaskBase

LAYOUTS = {
    "fsdp": {"dp_shard": 4},
    "hsdp": {"dp_replicate": 2, "dp_shard": 2},
    "tensor": {"tp": 4},
    "fsdp-tensor": {"dp_shard": 2, "tp": 2},
    "context-tensor": {"cp": 2, "tp": 2},
    "pipeline-fsdp": {"pp": 2, "dp_shard": 2},
}
EXPERT_LAYOUTS = {
    "fsdp": {"dp_shard": 4},
    "expert": {"dp_shard": 4, "ep": 2},
    "all-expert": {"dp_shard": 2, "cp": 2, "ep": 4},
    "tensor": {"dp_shard": 2, "tp": 2},
    "pipeline-expert": {"pp": 2, "dp_shard": 2, "ep": 2},
    "pipeline-tensor-expert": {"pp": 2, "tp": 2, "ep": 2},
}
TIED_LAYOUTS = {"fsdp": {"dp_shard": 4}, "pipeline-fsdp": {"pp": 2, "dp_shard": 2}}
SHAPE = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "ffn_dim": 64, "vocab_size": 96}
SPEC = ModelSpec("tiny", **SHAPE)
ROUTED = ModelSpec("routed", family="llama4", n_experts=4, expert_ffn_dim=32, attention_chunk=8, nope_every=2, **SHAPE)
TIED = ModelSpec("tied", tied=True, **SHAPE)


class NextToken(TaskBase):
    def loss(self, model, batch):
        return LossSums(*model.loss(batch.tokens, batch.targets))


def made(spec, seed, fields):
    """A model with optimizers, alone or in a layout."""
    torch.manual_seed(seed)
    model = make_model(spec)
    layout = Layout(seq_len=16, global_batch=8, **(fields or {}))
    place = parallelize(model, NextToken(), layout, torch.device("cpu")) if fields else None
    optimizers = make_optimizers(model, spec, derive(10**5, 64), "muon")
    return (model, optimizers, place) if fields else (model, optimizers)


def whole(model, optimizers):
    """Every tensor of weights and optimizers by name, each whole and a copy, and every setting of the optimizers."""
    weights, state = get_state_dict(model, optimizers, options=StateDictOptions(flatten_optimizer_state_dict=True))
    both = {**weights, **state}
    own = {
        k: (v.full_tensor() if hasattr(v, "full_tensor") else v).clone() if isinstance(v, torch.Tensor) else v
        for k, v in both.items()
    }
    if not dist.is_initialized():
        return own
    parts = [{}] * dist.get_world_size()  # stages of a pipeline have different ones
    dist.all_gather_object(parts, own)
    return {k: v for part in parts for k, v in part.items()}


def unlike(have, want):
    """The names whose values are not the same to the bit."""
    return [k for k, v in want.items() if not (torch.equal(v, have[k]) if isinstance(v, torch.Tensor) else v == have[k])]


def train(model, optimizers, place, steps):
    for step in range(steps):
        tokens = torch.randint(0, SPEC.vocab_size, (8, 16), generator=torch.Generator().manual_seed(step))
        own = place.rows(8)
        batch = place.own_positions(Batch(tokens[own], tokens.roll(-1, 1)[own]))
        if place.pipeline is None:
            place.loss_of(model, NextToken(), batch).loss.backward()
        else:
            place.pipeline.step(batch, 1, 1.0)
        clip_gradient(model, 1.0, place)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def save_and_load_in_every_layout(folder, spec, layouts):
    start_processes()
    states = {"one": torch.load(folder / "one.pt")}
    for name, fields in layouts.items():
        model, optimizers, place = made(spec, 1, fields)
        train(model, optimizers, place, 2)
        saver = checkpoint.Saver(folder / name, keep=1)
        saver.save(2, model, optimizers, {"step": 2})
        states[name] = whole(model, optimizers)
        train(model, optimizers, place, 1)  # goes on while the save does
        saver.close()
    if dist.get_rank() == 0:
        torch.save(states, folder / "states.pt")
    for target, fields in layouts.items():
        model, optimizers, place = made(spec, 2, fields)
        for source, want in states.items():
            assert checkpoint.restore_latest(folder / source, model, optimizers) == {"step": 2}
            have = whole(model, optimizers)
            assert have.keys() == want.keys(), (source, target, have.keys() ^ want.keys())
            assert not unlike(have, want), (source, target)
            if dist.get_rank() == 0:
                (folder / f"{source}-{target}.same").touch()
            train(model, optimizers, place, 1)  # so that the next load has something to change
    dist.barrier()


def some(layouts, *names):
    return {name: layouts[name] for name in names}


@pytest.mark.parametrize(
    "spec, layouts",
    [
        pytest.param(SPEC, some(LAYOUTS, "hsdp", "fsdp-tensor", "pipeline-fsdp"), id="dense"),
        pytest.param(
            ROUTED, some(EXPERT_LAYOUTS, "all-expert", "tensor", "pipeline-tensor-expert"), id="routed", marks=pytest.mark.slow
        ),
        pytest.param(TIED, TIED_LAYOUTS, id="tied"),
        pytest.param(SPEC, LAYOUTS, id="dense-all", marks=pytest.mark.slow),
        pytest.param(ROUTED, EXPERT_LAYOUTS, id="routed-all", marks=pytest.mark.slow),
    ],
)
def test_any_layout_loads_what_any_other_saved_to_the_bit_and_one_process_too(tmp_path, spec, layouts):
    model, optimizers = made(spec, 3, None)
    for step in range(2):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
        for optimizer in optimizers:
            optimizer.step()
    checkpoint.save(tmp_path / "one", 2, model, optimizers, {"step": 2})
    torch.save(whole(model, optimizers), tmp_path / "one.pt")
    run_together(4, save_and_load_in_every_layout, tmp_path, spec, layouts)
    assert len(list(tmp_path.glob("*.same"))) == len(layouts) * (len(layouts) + 1)
    states = torch.load(tmp_path / "states.pt")
    for name in layouts:
        model, optimizers = made(spec, 4, None)
        assert checkpoint.restore_latest(tmp_path / name, model, optimizers) == {"step": 2}
        have = whole(model, optimizers)
        assert have.keys() == states[name].keys() and not unlike(have, states[name])
    write_model(model, tmp_path / "whole")
    export_model(checkpoint.latest(tmp_path / name), spec, tmp_path / "parts")
    a, b = (load_file(tmp_path / folder / "model.safetensors") for folder in ("whole", "parts"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert (tmp_path / "whole" / "config.json").read_text() == (tmp_path / "parts" / "config.json").read_text()
