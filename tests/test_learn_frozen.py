"""Adapters beside weights of few bits: the products, their gradients, the files, and the server that reads them."""

import json

import openai
import peft
import pytest
import torch
from chat_models import chat_model
from torch import nn
from transformers import AutoModelForCausalLM

from tenfold.learn.options import DPOOptions, LoRAOptions, TuneSettings
from tenfold.learn.tune import tune
from tenfold.model.io.huggingface import read_model
from tenfold.model.io.peft import read_adapter, write_adapter
from tenfold.model.llama4 import Llama4
from tenfold.model.lora import LoRALinear, add_lora, merge_lora
from tenfold.model.moe import expert_layers
from tenfold.model.quantised import QuantisedLinear, quantise_layers
from tenfold.serve.engine.build import make_engine
from tenfold.serve.options import EngineOptions
from tenfold.serve.request import Request, Sampling
from tenfold.serve.runners.weights import pack
from tenfold.serve.start import serving
from tenfold.spec.errors import TenfoldError
from tenfold.spec.shapes import llama4_shape
from tenfold.train.metrics import read_metrics

TOKENS = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(0))
SETTINGS = TuneSettings(steps=6, seq_len=64, batch_size=4, max_epochs=99, learning_rate=1e-2)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Rows of 48 do not fill groups of 32."""
    return chat_model(tmp_path_factory.mktemp("frozen") / "base", ffn_dim=48)


def rows(path, kind):
    def answer(text):
        return [{"role": "assistant", "content": text}]

    prompts = [[{"role": "user", "content": f"Hello {i}"}] for i in range(40)]
    made = [
        {"messages": p + answer("Lima")} if kind == "sft" else {"prompt": p, "chosen": answer("Lima"), "rejected": answer("7")}
        for p in prompts
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(path)


def quantised(base, bits):
    model = read_model(base)
    quantise_layers(model, bits)
    return model


@torch.no_grad()
def logits(model):
    found = model(TOKENS)
    return getattr(found, "logits", found)


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_a_product_and_its_gradient_are_those_of_the_whole_matrix(bits):
    torch.manual_seed(0)
    for inputs in (48, 63, 64):
        linear = nn.Linear(inputs, 10, bias=False)
        before, holder = linear.weight.detach().clone(), nn.Module()
        holder.layers = [linear]
        quantise_layers(holder, bits)
        assert type(linear) is QuantisedLinear and not list(linear.parameters())
        whole, step = linear.weight, before.abs().max() / (127 if bits == "int8" else 7)
        assert whole.shape == before.shape and (whole - before).abs().max() <= step
        size = {"int8": 1, "int4": 0.5}[bits]
        assert linear.numbers.nbytes <= size * 10 * (inputs + 1)
        x = torch.randn(3, 5, inputs, requires_grad=True)
        expected = torch.autograd.grad((x @ whole.T).square().sum(), x)
        torch.testing.assert_close(torch.autograd.grad(linear(x).square().sum(), x), expected)
        with torch.autocast("cpu", torch.bfloat16):
            (rounded,) = torch.autograd.grad(linear(x).float().square().sum(), x)
        torch.testing.assert_close(rounded, expected[0], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_routers_keep_their_floats_and_choose_the_same_experts(bits):
    torch.manual_seed(0)
    model, rows = Llama4(llama4_shape(64, 300)), torch.randn(200, 64)
    layers = expert_layers(model)
    before = [(layer.router.weight.detach().clone(), layer.route(rows)[0]) for layer in layers]
    quantise_layers(model, bits)
    assert layers and all(type(block.attention.wqkv) is QuantisedLinear for block in model.layers)
    for layer, (weight, chosen) in zip(layers, before, strict=True):
        assert type(layer.router) is nn.Linear and layer.router.weight.equal(weight) and not layer.router.weight.requires_grad
        assert layer.route(rows)[0].equal(chosen) and type(layer.shared.w1) is QuantisedLinear


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_frozen_weights_are_those_that_the_engine_serves(base, bits):
    """One grid: what an adapter was trained beside is what the compiled step multiplies with."""
    weight = quantised(base, bits).layers[0].attention.wqkv.weight
    packed = pack(read_model(base).layers[0].attention.wqkv.weight, bits)
    assert pack(weight, bits).scales.equal(packed.scales) and pack(weight, bits).data.equal(packed.data)


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_run_on_frozen_weights_ends_in_an_adapter_that_peft_and_the_engine_read(base, tmp_path, bits, kind):
    options = (LoRAOptions if kind == "sft" else DPOOptions)(lora_rank=4, quantization=bits)
    source = rows(tmp_path / "rows.jsonl", kind)
    tune(base, source, tmp_path / "run", SETTINGS, options=options, quiet=True)
    losses = [row["loss"] for row in read_metrics(tmp_path / "run" / "run.jsonl") if row["event"] == "step"]
    assert losses[-1] < losses[0]
    if kind == "dpo":
        assert losses[0] == pytest.approx(0.6931, abs=1e-4)  # the reference has the same bits
    beside = quantised(base, bits)
    read_adapter(beside, tmp_path / "run" / "adapter")
    merged = read_model(tmp_path / "run" / "model")
    torch.testing.assert_close(logits(merged), logits(beside), atol=1e-4, rtol=1e-4)
    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "run" / "adapter")
    whole = read_model(base)
    read_adapter(whole, tmp_path / "run" / "adapter")
    torch.testing.assert_close(logits(theirs), logits(whole), atol=1e-4, rtol=1e-4)


def test_an_adapter_of_pefts_goes_on_and_comes_out_again(base, tmp_path):
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    theirs = peft.get_peft_model(theirs, config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    model = read_model(base)
    add_lora(model, 4, 8.0)
    read_adapter(model, tmp_path / "theirs")
    torch.testing.assert_close(logits(model), logits(theirs), atol=1e-4, rtol=1e-4)
    write_adapter(model, tmp_path / "ours", str(base))
    again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "ours")
    torch.testing.assert_close(logits(again), logits(theirs), atol=1e-4, rtol=1e-4)
    options = DPOOptions(lora_rank=4, adapter=str(tmp_path / "theirs"))
    tune(base, rows(tmp_path / "rows.jsonl", "dpo"), tmp_path / "run", SETTINGS, options=options, quiet=True)
    first = next(row for row in read_metrics(tmp_path / "run" / "run.jsonl") if row["event"] == "step")
    assert first["loss"] == pytest.approx(0.6931, abs=1e-4)  # the adapter is part of the reference


def engine_answer(options):
    engine = make_engine(options)
    engine.add(Request("a", TOKENS[0].tolist(), Sampling(temperature=0, max_tokens=8)))
    tokens = []
    while engine.has_work:
        tokens += [token for output in engine.step() for token in output.tokens]
    return tokens


def test_the_server_answers_beside_weights_of_few_bits_without_merging(base, tmp_path):
    torch.manual_seed(1)
    model = quantised(base, "int4")
    add_lora(model, 4, 8.0)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            nn.init.normal_(module.lora_b, std=0.3)
    write_adapter(model, tmp_path / "adapter", str(base))
    options = EngineOptions(base, quantization="int4", adapter=tmp_path / "adapter", kv_cache_gib=0.01, threads=1, speculate=False)
    answer, tokens = engine_answer(options), TOKENS[0].tolist()
    merge_lora(model)
    with torch.no_grad():
        for _ in answer:
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert tokens[24:] == answer
    assert engine_answer(EngineOptions(base, quantization="int4", kv_cache_gib=0.01, threads=1, speculate=False)) != answer
    with serving({"base": options}) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
        told = client.chat.completions.create(model="base", messages=[{"role": "user", "content": "Hello"}], max_tokens=4)
    assert told.usage.completion_tokens >= 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (LoRAOptions(quantization="int4"), "quantization in .task. is for adapters: give lora_rank"),
        (LoRAOptions(lora_alpha=4.0), "lora_alpha in .task. is for adapters"),
        (LoRAOptions(lora_rank=4, adapter="nowhere"), "nowhere is no adapter of PEFT's"),
    ],
)
def test_what_does_not_fit_adapters_is_refused(base, tmp_path, options, said):
    with pytest.raises(TenfoldError, match=said):
        tune(base, rows(tmp_path / "rows.jsonl", "sft"), tmp_path / "run", SETTINGS, options=options, quiet=True)
    assert not (tmp_path / "run" / "model").exists()


def test_an_adapter_of_another_model_is_told_from_its_own(base, tmp_path):
    wide = chat_model(tmp_path / "wide", dim=48)
    model = read_model(wide)
    add_lora(model, 2, 4.0)
    write_adapter(model, tmp_path / "adapter", str(wide))
    with pytest.raises(TenfoldError, match=r"has matrices \(2, 48\) and \(32, 2\) for q_proj, and base has 32 x 32"):
        read_adapter(read_model(base), tmp_path / "adapter")


def test_other_backends_refuse_adapters(base, tmp_path):
    from tenfold.serve.backends.backend import make_backend

    with pytest.raises(TenfoldError, match="Adapters are served by the backend tenfold"):
        make_backend(EngineOptions(base, adapter=tmp_path, backend="vllm"))
