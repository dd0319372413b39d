"""Multi-token prediction: which tokens it predicts, that the model itself stays plain, and that it trains."""

import pytest
import torch
from run_configs import run_config
from transformers import AutoModelForCausalLM

from tenfold.model.build import make_model
from tenfold.model.mtp import add_mtp, further, mtp_weights
from tenfold.spec.errors import TenfoldError
from tenfold.spec.shapes import llama4_shape, llama_shape
from tenfold.train.run_file import task_settings
from tenfold.train.tasks.pretrain import PretrainingConfig, pretrain

SMALL = {"seq_len": 64, "batch_size": 4, "evaluate_tokens": 2048, "tokens": 8_000}


def test_the_further_target_is_that_of_the_next_token_in_the_same_document():
    targets = torch.tensor([[11, 12, 13, -100, 21, 22]])
    document = torch.tensor([[0, 0, 0, 0, 1, 1]])
    assert further(targets, document).tolist() == [[12, 13, -100, -100, 22, -100]]
    assert further(targets, None).tolist() == [[12, 13, -100, 21, 22, -100]]


@pytest.mark.parametrize("shape", [llama_shape, llama4_shape])
def test_predictions_ahead_follow_a_deterministic_text_and_never_see_their_own_target(shape):
    torch.manual_seed(0)
    model = make_model(shape(32, 20))
    add_mtp(model, 2, 1.0)
    assert sum(p.numel() for n, p in model.mtp.named_parameters() if p.ndim > 1) == mtp_weights(model.spec, 2) - 2 * 32 * 20
    tokens = torch.randint(0, 20, (1, 24), generator=torch.Generator().manual_seed(1))
    targets = torch.cat((tokens[:, 1:], torch.tensor([[-100]])), 1)
    hidden = torch.randn(1, 24, 32, requires_grad=True)
    # Depth k at place i predicts token i + 1 + k: no hidden state past i may reach it.
    alone = targets.clone()
    alone[:, :4], alone[:, 6:] = -100, -100  # depth 1 at places 3 and 4 has targets; depth 2 at 2 and 3
    model.mtp(hidden, tokens, alone, None, model.embedding, model.head).backward()
    reached = hidden.grad.abs().sum(-1)[0] > 0
    assert reached[:5].all() and not reached[5:].any()


def test_only_training_has_the_extra_loss():
    torch.manual_seed(0)
    model = make_model(llama_shape(32, 50))
    tokens = torch.randint(0, 50, (2, 16))
    with torch.no_grad():
        plain = model.loss(tokens, tokens)
    add_mtp(model, 1, 0.5)
    nats, extra = model.loss(tokens, tokens)
    assert nats.item() == pytest.approx(plain[0].item(), rel=1e-5) and extra.item() > 0.4 * nats.item()
    with torch.no_grad():
        assert model.loss(tokens, tokens)[1] == 0


@pytest.mark.parametrize("family", ["llama3", "llama4"])
def test_a_run_with_predictions_ahead_writes_a_plain_model(corpus, tmp_path, family):
    result = pretrain(run_config(mtp=1, model={"width": 16, "family": family}, **SMALL), corpus, tmp_path, quiet=True)
    plain = pretrain(run_config(model={"width": 16, "family": family}, **SMALL), corpus, tmp_path / "plain", quiet=True)
    assert result.flops > 1.2 * plain.flops and result.bits_per_byte == pytest.approx(plain.bits_per_byte, rel=0.1)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert theirs.num_parameters() == AutoModelForCausalLM.from_pretrained(tmp_path / "plain" / "model").num_parameters()


def test_a_negative_number_ahead_is_one_sentence():
    with pytest.raises(TenfoldError, match="mtp must be a whole number >= 0 and <= 64, not -1"):
        task_settings(run_config(tokens=1, mtp=-1), PretrainingConfig)
