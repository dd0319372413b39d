"""fp8: which layers it takes, that it says what it does, and that checkpoints stay plain."""

from dataclasses import replace

import pytest
import torch
from run_configs import run_config

from tenfold.model.io.huggingface import read_model, write_model
from tenfold.model.llama import Llama
from tenfold.model.llama4 import Llama4
from tenfold.model.lora import LoRALinear, add_lora
from tenfold.spec.shapes import llama4_shape, llama_shape
from tenfold.train import start
from tenfold.train.metrics import read_metrics
from tenfold.train.optim.fp8 import convert, use_fp8, why_not
from tenfold.train.tasks.pretrain import pretrain


def test_where_the_hardware_lacks_it_a_run_says_so_and_is_the_run_without_it(corpus, tmp_path):
    small = {"model": {"width": 16}, "tokens": 4000, "seq_len": 64, "batch_size": 4, "evaluate_tokens": 2048}
    with pytest.warns(UserWarning, match="fp8 was requested but does nothing: this run is not on a GPU; the run trains in float32"):
        asked = pretrain(run_config(fp8=True, device="cpu", dtype="float32", **small), corpus, tmp_path / "asked", quiet=True)
    plain = pretrain(run_config(device="cpu", dtype="float32", **small), corpus, tmp_path / "plain", quiet=True)
    assert asked.loss == plain.loss
    assert "does nothing" in read_metrics(tmp_path / "asked" / "run.jsonl")[0]["fp8"]


@pytest.mark.parametrize(
    ("capability", "dtype", "reason"),
    [
        ((8, 0), torch.bfloat16, "A100 has no 8-bit units"),
        ((9, 0), torch.float32, "trains in float32"),
        ((9, 0), torch.bfloat16, ""),
    ],
)
def test_the_reason_is_that_of_the_device(monkeypatch, capability, dtype, reason):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    found = why_not(torch.device("cuda"), dtype)
    assert reason in found and bool(reason) == bool(found)


def test_linear_layers_in_fp8_compute_nearly_the_same_and_are_written_plain(tmp_path):
    pytest.importorskip("torchao")
    torch.manual_seed(0)
    model = Llama4(replace(llama4_shape(64, 256), n_experts=1))  # with several, rounding moves tokens between them
    tokens = torch.randint(0, 256, (2, 64))
    with torch.no_grad():
        before = model(tokens)
    write_model(model, tmp_path / "before")
    linear, grouped = convert(model, emulate=True)
    # Two projections of attention and three of the shared expert a layer; neither routers nor the head.
    assert (linear, grouped) == (5 * model.spec.n_layers, 0)
    with torch.no_grad():
        after = model(tokens)
    assert 0 < (after - before).norm() < 0.15 * before.norm()  # three bits of fraction on both sides of every product
    nats, _ = model.loss(tokens, tokens)
    nats.backward()
    assert all(p.grad is not None for p in model.parameters())
    write_model(model, tmp_path / "after")
    for a, b in zip(read_model(tmp_path / "before").parameters(), read_model(tmp_path / "after").parameters(), strict=True):
        assert torch.equal(a, b)


def test_layers_with_adapters_are_left_as_they_are():
    pytest.importorskip("torchao")
    model = Llama(llama_shape(64, 256))
    add_lora(model, 4, 8.0)
    assert convert(model, emulate=True) == (0, 0)
    assert sum(isinstance(module, LoRALinear) for module in model.modules()) == 5 * model.spec.n_layers


def test_layers_are_converted_before_the_model_is_distributed(corpus, tmp_path, monkeypatch):
    order, parallelize = [], start.parallelize
    monkeypatch.setattr(start, "use_fp8", lambda *_: order.append("fp8") or "in 8 bits")
    monkeypatch.setattr(start, "parallelize", lambda *given: order.append("parallelize") or parallelize(*given))
    small = {"model": {"width": 16}, "tokens": 4000, "seq_len": 64, "batch_size": 4, "evaluate_tokens": 2048}
    pretrain(run_config(fp8=True, device="cpu", dtype="float32", **small), corpus, tmp_path / "run", quiet=True)
    assert order == ["fp8", "parallelize"]


def test_where_the_gpu_has_it_experts_multiply_by_the_grouped_kernel():
    pytest.importorskip("torchao")
    model = Llama4(llama4_shape(64, 256))
    convert(model, emulate=False)
    products = [layer.product for name, layer in model.named_modules() if name.endswith((".ffn.w1", ".ffn.w2", ".ffn.w3"))]
    assert len(products) == 3 * model.spec.n_layers and all(p is not torch._grouped_mm for p in products)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_fp8_on_a_gpu_matches_bfloat16():
    device = torch.device("cuda")
    if why_not(device, torch.bfloat16):
        pytest.skip("needs a GPU with 8-bit units")
    torch.manual_seed(0)
    with device:
        model = Llama4(llama4_shape(256, 2048)).bfloat16()
        tokens = torch.randint(0, 2048, (4, 256))
    plain = model.loss(tokens, tokens)[0].item()
    assert "fp8 in" in use_fp8(model, device, torch.bfloat16)
    assert model.loss(tokens, tokens)[0].item() == pytest.approx(plain, rel=0.005)
