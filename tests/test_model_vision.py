"""The image encoder and its place in the text, against Hugging Face's."""

from dataclasses import replace

import pytest
import torch
from transformers import Llama4ForConditionalGeneration

from tenfold.model.io.huggingface import read_model, write_model
from tenfold.model.llama4 import Llama4
from tenfold.model.vision import Vision, join_neighbours, patches_of
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec
from tenfold.spec.vision import VisionSpec

VISION = VisionSpec(image_size=24, patch_size=4, dim=32, n_layers=2, n_heads=2, shuffle=2, adapter_dim=48, patch_token=299)
SPEC = ModelSpec(
    "seeing", family="llama4", dim=64, n_layers=4, n_heads=4, n_kv_heads=2, ffn_dim=128, expert_ffn_dim=48, vocab_size=300,
    context=512, n_experts=4, moe_every=2, attention_chunk=32, nope_every=4, qk_norm=True, vision=VISION,
)  # fmt: skip


def seeing_model(**changes) -> Llama4:
    torch.manual_seed(0)
    model = Llama4(replace(SPEC, **changes)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return model


def text_with_images(per_row: list[int]) -> torch.Tensor:
    """Rows of 80 tokens with that many tiles' patch tokens each."""
    tokens = torch.randint(0, 299, (len(per_row), 80), generator=torch.Generator().manual_seed(1))
    for row, tiles in enumerate(per_row):
        tokens[row, 5 : 5 + tiles * VISION.tokens_per_tile] = VISION.patch_token
    return tokens


@pytest.mark.parametrize("shuffle", [2, 3])
def test_logits_with_images_agree_with_transformers(tmp_path, shuffle):
    model = seeing_model(vision=replace(VISION, shuffle=shuffle))
    write_model(model, tmp_path)
    theirs = Llama4ForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    per_tile = model.vision.spec.tokens_per_tile
    tokens = torch.randint(0, 299, (2, 80), generator=torch.Generator().manual_seed(1))
    tokens[0, 5 : 5 + 2 * per_tile] = 299
    tokens[1, 40 : 40 + per_tile] = 299
    pixels = torch.rand(3, 3, 24, 24) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(
            model(tokens, pixels=pixels), theirs(input_ids=tokens, pixel_values=pixels).logits, rtol=0, atol=1e-4
        )
        text = tokens.clamp(max=298)
        torch.testing.assert_close(model(text), theirs(input_ids=text).logits, rtol=0, atol=1e-4)
    again = read_model(tmp_path)
    assert again.spec == replace(model.spec, name=tmp_path.name)
    for ours, read in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, read)


def test_patches_are_what_unfolding_gives():
    pixels = torch.randn(2, 3, 24, 24)
    torch.testing.assert_close(patches_of(pixels, 4), torch.nn.Unfold(4, stride=4)(pixels).mT, rtol=0, atol=0)


def test_joined_neighbours_are_neighbours():
    place = torch.arange(36).view(1, 36, 1)
    assert join_neighbours(place, 2)[0, 0].tolist() == [0, 1, 6, 7]
    assert join_neighbours(place, 3)[0, 3].tolist() == [21, 22, 23, 27, 28, 29, 33, 34, 35]


def test_parameters_are_those_of_the_module_and_of_scout():
    assert sum(p.numel() for p in Vision(VISION, 64).parameters()) == VISION.parameters(64)
    assert VisionSpec().parameters(5120) == pytest.approx(0.87e9, rel=0.01)  # shared with Maverick: 109B - 107.8B


def test_the_loss_reaches_the_pixels_and_the_encoder():
    model = seeing_model()
    tokens, pixels = text_with_images([1, 2]), torch.rand(3, 3, 24, 24, requires_grad=True)
    nats, _ = model.loss(tokens[:, :-1], tokens[:, 1:], pixels=pixels)
    nats.backward()
    assert all(pixels.grad[i].abs().sum() > 0 for i in range(3))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.vision.parameters())


def test_the_wrong_number_of_patch_tokens_is_one_sentence():
    model = seeing_model()
    with pytest.raises(TenfoldError, match="has 27 patch tokens, but its 2 image tiles need 18: write 9 patch tokens for each"):
        model(text_with_images([1, 2]), pixels=torch.rand(2, 3, 24, 24))
    with pytest.raises(TenfoldError, match="no image encoder"):
        Llama4(replace(SPEC, vision=None))(text_with_images([1]), pixels=torch.rand(1, 3, 24, 24))
    with pytest.raises(TenfoldError, match="must be a multiple of patch_size x shuffle"):
        replace(VISION, image_size=25)
    with pytest.raises(TenfoldError, match="must be a multiple of 4 x n_heads"):
        replace(VISION, dim=34)
