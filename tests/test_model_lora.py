"""Adapters: nothing at first, merged as they work, and PEFT's own in both directions."""

import json

import peft
import pytest
import torch
from chat_models import chat_model
from transformers import AutoModelForCausalLM

from tenfold.learn.options import LoRAOptions, TuneSettings
from tenfold.learn.tune import tune
from tenfold.model.build import make_shapes
from tenfold.model.io.huggingface import read_model
from tenfold.model.io.peft import read_adapter, write_adapter
from tenfold.model.lora import LoRALinear, add_lora, merge_lora
from tenfold.spec.errors import TenfoldError
from tenfold.spec.shapes import llama4_shape

TOKENS = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return chat_model(tmp_path_factory.mktemp("lora") / "base")


def with_adapters(base):
    model = read_model(base)
    add_lora(model, 4, 8.0)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            torch.nn.init.normal_(module.lora_b, std=0.1)
    return model


@torch.no_grad()
def logits(model):
    found = model(TOKENS)
    return getattr(found, "logits", found)


def test_an_adapter_is_nothing_at_first_and_alone_is_trained(base):
    plain, model = read_model(base), read_model(base)
    add_lora(model, 4, 8.0)
    assert torch.equal(logits(plain), logits(model))
    assert {name.split(".")[-1] for name, p in model.named_parameters() if p.requires_grad} == {"lora_a", "lora_b"}


def test_peft_reads_ours_and_we_read_pefts(base, tmp_path):
    ours = with_adapters(base)
    write_adapter(ours, tmp_path / "ours", str(base))
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "ours")
    torch.testing.assert_close(logits(theirs), logits(ours), atol=1e-4, rtol=1e-4)
    targets = ["q_proj", "v_proj", "down_proj"]
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    read = read_model(base)
    read_adapter(read, tmp_path / "theirs")
    torch.testing.assert_close(logits(read), logits(theirs), atol=1e-4, rtol=1e-4)
    merged = logits(read)
    merge_lora(read)
    torch.testing.assert_close(logits(read), merged, atol=1e-4, rtol=1e-4)
    assert not any(isinstance(module, LoRALinear) for module in read.modules())


def test_what_is_no_plain_adapter_is_refused(base, tmp_path):
    with pytest.raises(TenfoldError, match="is not a PEFT adapter"):
        read_adapter(read_model(base), tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(r=3, target_modules=["q_proj"], use_rslora=True, task_type="CAUSAL_LM")
    peft.get_peft_model(theirs, config).save_pretrained(tmp_path / "rs")
    with pytest.raises(TenfoldError, match="is not plain LoRA"):
        read_adapter(read_model(base), tmp_path / "rs")


def test_a_model_with_experts_is_refused_before_it_is_trained():
    with pytest.raises(TenfoldError, match="has experts, and adapters of experts cannot be saved"):
        add_lora(make_shapes(llama4_shape(64, 300)), 4, 8.0)


def test_a_run_writes_its_adapter_and_the_merged_model(base, tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"Hello {i}"}, {"role": "assistant", "content": "Lima"}]} for i in range(40)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = TuneSettings(steps=15, seq_len=64, batch_size=4, max_epochs=99)
    result = tune(base, str(tmp_path / "chats.jsonl"), tmp_path / "run", settings, options=LoRAOptions(lora_rank=4), quiet=True)
    before = read_model(base)
    read_adapter(before, tmp_path / "run" / "adapter")
    torch.testing.assert_close(logits(before), logits(read_model(tmp_path / "run" / "model")), atol=1e-4, rtol=1e-4)
    assert result.loss < 5 and torch.equal(before.embedding.weight, read_model(base).embedding.weight)
