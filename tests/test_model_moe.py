"""Experts against a plain loop, whatever the load; balancing; Muon on stacks against Muon on single matrices."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from run_configs import run_config
from stop_at import SignalAt, pretrain_with

from tenfold.model.llama4 import Llama4
from tenfold.model.moe import Experts, router_statistics, update_expert_bias
from tenfold.spec.model import ModelSpec
from tenfold.spec.shapes import llama4_shape, llama_shape
from tenfold.train.metrics import read_metrics
from tenfold.train.optim.muon import Muon
from tenfold.train.tasks.pretrain import pretrain


def experts_of(n_experts: int, per_token: int, seed: int = 0, dim: int = 16) -> Experts:
    torch.manual_seed(seed)
    return Experts(
        ModelSpec(
            "x", family="llama4", dim=dim, n_layers=1, n_heads=2, n_kv_heads=2, ffn_dim=24, vocab_size=9,
            n_experts=n_experts, experts_per_token=per_token, expert_ffn_dim=24,
        )
    )  # fmt: skip


def by_loop(layer: Experts, x: torch.Tensor) -> torch.Tensor:
    """Every token and expert on its own, from the formula."""
    out = []
    for row in x:
        scores = layer.router.weight @ row
        total = layer.shared(row)
        for e in (scores + layer.bias).topk(layer.per_token).indices.tolist():
            y = torch.sigmoid(scores[e]) * row
            hidden = F.silu(layer.w1.weight[e] @ y) * (layer.w3.weight[e] @ y)
            total = total + layer.w2.weight[e] @ hidden
        out.append(total)
    return torch.stack(out)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 40), st.integers(0, 99), st.sampled_from([0.0, 50.0]))
def test_any_load_gives_what_a_loop_over_tokens_gives(n_experts, per_token, rows, seed, push):
    layer = experts_of(n_experts, min(per_token, n_experts), seed)
    layer.bias[0] = push  # all tokens to one expert: nothing is dropped
    x = torch.randn(rows, 16, requires_grad=True)
    ours, plain = layer(x), by_loop(layer, x)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5)
    assert layer.load.sum() == rows * layer.per_token
    if push:
        assert layer.load[0] == rows
    direction = torch.randn_like(ours)
    wanted = [x, *layer.parameters()]
    for a, b in zip(
        torch.autograd.grad((ours * direction).sum(), wanted, retain_graph=True),
        torch.autograd.grad((plain * direction).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def unevenness(layer: Experts, x: torch.Tensor) -> float:
    with torch.no_grad():
        load = layer.route(x)[2].float()
    return (load.max() / load.mean()).item()


def test_the_bias_evens_out_the_load_and_fades():
    layer = experts_of(8, 1)
    x = torch.randn(800, 16) + 1.5  # one direction shared by all tokens: some experts take most
    before = unevenness(layer, x)
    for _ in range(150):
        layer.load.zero_()
        layer(x)
        update_expert_bias(layer, 0.02)
    assert before > 2 and unevenness(layer, x) < 1.2
    update_expert_bias(layer, 0.02, keep=0.0)
    assert not layer.bias.any() and unevenness(layer, x) == before


def test_the_balance_loss_is_one_when_even_and_its_gradient_evens_out():
    layer = experts_of(8, 1)
    layer.aux_loss_weight = 1.0
    x = torch.randn(800, 16) + 1.5
    before = unevenness(layer, x)
    descent = torch.optim.Adam(layer.router.parameters(), 0.02)
    for _ in range(60):
        descent.zero_grad()
        layer(x)
        layer.aux_loss.backward()
        descent.step()
    assert unevenness(layer, x) < before / 2
    layer.router.weight.data.zero_()
    layer(x)
    assert layer.aux_loss.item() == pytest.approx(1)


def test_statistics_of_known_loads():
    even, one = torch.tensor([5, 5, 5, 5]), torch.tensor([20, 0, 0, 0])
    assert router_statistics([even])["expert_entropy"] == pytest.approx(1)
    found = router_statistics([even, one])
    assert found["expert_entropy"] == pytest.approx(0.5) and found["dead_experts"] == 3
    assert found["expert_load_max"] == pytest.approx((1 + 4) / 2)
    assert found["expert_load"][1] == [1, 0, 0, 0] and router_statistics([]) == {}


@pytest.mark.parametrize("shape", [(3, 20, 12), (3, 12, 20)])
def test_muon_on_a_stack_is_muon_on_each_matrix(shape):
    torch.manual_seed(0)
    stack = torch.nn.Parameter(torch.randn(shape))
    single = [torch.nn.Parameter(m.clone()) for m in stack.data]
    ours = Muon([stack], lr=0.1, weight_decay=0.2)
    theirs = torch.optim.Muon(single, lr=0.1, weight_decay=0.2, adjust_lr_fn="original")
    for _ in range(3):
        stack.grad = torch.randn(shape)
        for p, g in zip(single, stack.grad, strict=True):
            p.grad = g.clone()
        ours.step()
        theirs.step()
    # PyTorch iterates in bfloat16, whose steps are 1 / 128.
    torch.testing.assert_close(stack.data, torch.stack([p.data for p in single]), rtol=0, atol=0.02)


def test_muon_takes_the_same_step_however_many_matrices_go_together(monkeypatch):
    def stepped(together):
        monkeypatch.setattr("tenfold.train.optim.muon.TOGETHER_BYTES", together)
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape)) for shape in ((20, 12), (20, 12), (3, 20, 12), (12, 20), (20, 12))]
        muon = Muon(params, lr=0.1, weight_decay=0.2)
        for p in params:
            p.grad = torch.randn(p.shape)
        muon.step()
        return [p.data for p in params]

    whole = stepped(2**28)
    for together in (1, 2 * 4 * 20 * 12, 4 * 4 * 20 * 12):
        torch.testing.assert_close(stepped(together), whole, rtol=0, atol=1e-6)


SMALL = {"seq_len": 64, "batch_size": 4, "evaluate_tokens": 2048, "log_every": 5, "model": {"width": 16, "family": "llama4"}}


@pytest.mark.parametrize("balance", ["aux_loss_free", "aux_loss", "none"])
def test_experts_train_with_the_same_loop_and_are_written_plain(corpus, tmp_path, balance):
    pretrain(run_config(tokens=20_000, load_balancing=balance, **SMALL), corpus, tmp_path, quiet=True)
    steps = [e for e in read_metrics(tmp_path / "run.jsonl") if e["event"] == "step"]
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.4
    assert 0 < steps[-1]["expert_entropy"] <= 1 and len(steps[-1]["expert_load"][0]) == 16
    from tenfold.model.io.huggingface import read_model

    model = read_model(tmp_path / "model")
    assert isinstance(model, Llama4) and model.spec.n_experts == 16


def test_a_stopped_run_with_experts_goes_on_to_the_same_weights(corpus, tmp_path):
    from safetensors.torch import load_file

    config = run_config(tokens=6_000, **SMALL)
    pretrain(config, corpus, tmp_path / "whole", quiet=True)
    assert not pretrain_with([SignalAt(9)], config, corpus, tmp_path / "stopped").finished
    assert pretrain(config, corpus, tmp_path / "stopped", quiet=True).finished
    whole, stopped = (load_file(tmp_path / d / "model" / "model.safetensors") for d in ("whole", "stopped"))
    assert all(torch.equal(whole[k], stopped[k]) for k in whole)


@pytest.mark.parametrize("width", [32, 64, 128, 512, 2048])
def test_the_shape_with_experts_computes_as_much_as_the_dense_one(width):
    dense, routed = llama_shape(width, 2048), llama4_shape(width, 2048)
    ratio = routed.train_flops_per_token(256) / dense.train_flops_per_token(256)
    assert 0.9 < ratio < 1.1
    assert routed.parameters().total > 1.3 * dense.parameters().total


def test_parameters_of_a_shape_are_those_of_the_model():
    spec = llama4_shape(64, 300)
    assert sum(p.numel() for p in Llama4(spec).parameters()) == spec.parameters().total
