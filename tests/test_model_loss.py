"""The chunked loss against PyTorch's own cross-entropy on all logits at once."""

import pytest
import torch
import torch.nn.functional as F

from tenfold.model import loss


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_value_and_gradients_equal_the_plain_loss(monkeypatch, z_loss):
    monkeypatch.setattr(loss, "CHUNK_BYTES", {"cpu": 128 * 4 * 50})
    torch.manual_seed(0)
    hidden = torch.randn(300, 16).requires_grad_()
    weight = torch.randn(50, 16).requires_grad_()
    targets = torch.randint(0, 50, (300,))
    targets[::7] = -100

    nats, z_term = loss.cross_entropy(hidden, weight, targets, z_loss)
    ((nats + z_term) / 300).backward()
    ours = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None

    logits = hidden @ weight.T
    expected = F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
    expected_z = z_loss * (logits.logsumexp(-1).square() * (targets >= 0)).sum()
    ((expected + expected_z) / 300).backward()

    torch.testing.assert_close(nats, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(z_term, expected_z, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(ours[0], hidden.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours[1], weight.grad, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(loss.cross_entropy(hidden, weight, targets)[0], expected, rtol=1e-5, atol=1e-4)
