"""Counts that follow from a shape, against published figures and PyTorch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tenfold.model.llama import Llama
from tenfold.spec.accelerator import accelerator
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec, published_model
from tenfold.spec.shapes import llama_shape
from tenfold.spec.units import duration, parse_quantity, si


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("llama-3-8b", 8.030e9, 8.030e9),
        ("llama-3.1-70b", 70.554e9, 70.554e9),
        ("llama-3.1-405b", 405.85e9, 405.85e9),
        ("llama-3.2-1b", 1.2358e9, 1.2358e9),
        ("llama-3.2-3b", 3.2127e9, 3.2127e9),
        ("llama-4-scout", 107.77e9, 17.17e9),
        ("llama-4-maverick", 400.71e9, 17.18e9),
        ("smollm2-135m", 134.5e6, 134.5e6),
    ],
)
def test_parameters_of_published_models(name, total, active):
    found = published_model(name).parameters()
    assert found.total == pytest.approx(total, rel=1e-3)
    assert found.active == pytest.approx(active, rel=1e-3)


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_and_flops_equal_those_of_the_real_model(tied):
    spec = ModelSpec("t", dim=64, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=96, vocab_size=200, tied=tied)
    model = Llama(spec)
    assert sum(p.numel() for p in model.parameters()) == spec.parameters().total
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(torch.zeros(2, 32, dtype=torch.long))
    # PyTorch's counter takes the whole square of scores.
    assert counter.get_total_flops() == pytest.approx(64 * spec.forward_flops_per_token(32, "full_attention"))


def test_causal_attention_is_half_of_the_square():
    spec = published_model("llama-3.1-8b")
    half = spec.attention_flops_per_token(8192)
    assert half / spec.attention_flops_per_token(8192, causal=False) == pytest.approx(0.5, abs=1e-3)


def test_chunked_attention_counts_what_the_mask_lets_through():
    spec = published_model("llama-4-scout")
    q, k = torch.arange(20000)[:, None], torch.arange(20000)[None, :]
    allowed = ((q // 8192 == k // 8192) & (k <= q)).sum().item() / 20000
    assert spec.attended(20000, layer=0) == pytest.approx(allowed)
    assert spec.attended(20000, layer=3) == pytest.approx(10000.5)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(TenfoldError, match=r"llama-3\.1-8b"):
        published_model("llama-3.1-8bb")
    with pytest.raises(TenfoldError, match="h100"):
        accelerator("h10")


def test_impossible_shapes_are_refused():
    with pytest.raises(TenfoldError, match="multiple of n_kv_heads"):
        ModelSpec("t", dim=64, n_layers=1, n_heads=4, n_kv_heads=3, ffn_dim=64, vocab_size=10)
    with pytest.raises(TenfoldError, match="must be a multiple"):
        llama_shape(100, 1024)


def test_quantities():
    assert parse_quantity("70B") == 70e9 and parse_quantity("3.8e26") == 3.8e26
    with pytest.raises(TenfoldError, match="positive number"):
        parse_quantity("lots")
    assert si(1.234e9, "tokens") == "1.23 Gtokens"
    assert duration(200) == "3 min 20 s"
