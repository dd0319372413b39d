"""Families: what a weight's role decides, that plans need no PyTorch, and that one file and one entry point make a new family."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from packages import install_example
from run_configs import run_config
from safetensors.torch import load_file

from tenfold.model.build import make_model
from tenfold.model.family import Role, family_of
from tenfold.model.io.huggingface import read_model
from tenfold.model.mtp import add_mtp
from tenfold.serve.complete import complete, generate
from tenfold.serve.engine.build import make_runner
from tenfold.serve.engine.engine import Engine
from tenfold.serve.options import EngineOptions
from tenfold.serve.request import Sampling
from tenfold.spec import plugins
from tenfold.spec.errors import TenfoldError
from tenfold.spec.shapes import llama4_shape, llama_shape, shape_of
from tenfold.spec.vision import VisionSpec
from tenfold.train.metrics import read_metrics
from tenfold.train.optim.hyperparameters import derive, learning_rate_scale
from tenfold.train.optim.optimizer import make_optimizers
from tenfold.train.tasks.pretrain import pretrain

VISION = VisionSpec(image_size=16, patch_size=4, dim=32, n_layers=1, n_heads=2, patch_token=299)
EVERYTHING = replace(llama4_shape(64, 300), moe_every=2, n_layers=2, vision=VISION)


def test_every_weight_has_the_role_of_its_place():
    model = make_model(EVERYTHING)
    add_mtp(model, 1, 0.3)
    role = family_of(EVERYTHING).role
    roles = {name: role(name) for name, _ in model.named_parameters()}
    assert [n for n, p in model.named_parameters() if (p.ndim == 1) != (roles[n] is Role.VECTOR)] == []
    assert roles["embedding.weight"] is Role.EMBEDDING and roles["head.weight"] is Role.HEAD
    assert {n for n, r in roles.items() if r is Role.ROUTER} == {"blocks.1.ffn.router.weight"}
    assert {n for n, r in roles.items() if r is Role.ENCODER_POSITIONS} == {"vision.positions"}
    residual = {n for n, r in roles.items() if r in (Role.RESIDUAL, Role.ENCODER_RESIDUAL)}
    assert residual == {
        *(f"{block}.attention.wo.weight" for block in ("blocks.0", "blocks.1", "mtp.depths.0.block")),
        *("blocks.0.ffn.w2.weight", "blocks.1.ffn.w2.weight", "blocks.1.ffn.shared.w2.weight", "mtp.depths.0.block.ffn.w2.weight"),
        *("vision.blocks.0.wo.weight", "vision.blocks.0.w2.weight"),
    }


def test_what_writes_to_the_residual_stream_learns_alike_whatever_its_fan_in():
    model = make_model(EVERYTHING)
    scales = {n: learning_rate_scale(n, tuple(p.shape), EVERYTHING) for n, p in model.named_parameters()}
    wo = scales["blocks.0.attention.wo.weight"]
    assert wo == pytest.approx(128 / 64 * 3 / 2)
    for name in ("blocks.0.ffn.w2", "blocks.1.ffn.w2", "blocks.1.ffn.shared.w2"):
        assert scales[f"{name}.weight"] == pytest.approx(wo), name
    assert scales["vision.blocks.0.w2.weight"] == pytest.approx(scales["vision.blocks.0.wo.weight"])


def test_vectors_and_tables_do_not_decay_and_muon_takes_hidden_matrices_alone():
    model = make_model(EVERYTHING)
    names = {p: n for n, p in model.named_parameters()}
    adam, muon = make_optimizers(model, EVERYTHING, derive(10**6, 64), "muon")
    free = {names[p] for g in adam.param_groups if g["weight_decay"] == 0 for p in g["params"]}
    assert free == {n for p, n in names.items() if p.ndim == 1} | {"embedding.weight", "vision.positions"}
    left = {names[p] for g in adam.param_groups for p in g["params"]} - free
    assert left == {"head.weight", "blocks.1.ffn.router.weight"}
    assert sum(len(g["params"]) for g in muon.param_groups) == len(names) - len(free) - len(left)


def test_shapes_and_roles_of_the_built_in_families_need_no_pytorch():
    code = """
import sys
from tenfold.spec.plugins import load
from tenfold.spec.shapes import shape_of
for name in ("llama3", "llama4"):
    assert shape_of(name, 64, 300).family == name
    load("families", name).role("blocks.0.ffn.w2.weight")
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def parallel(tmp_path, monkeypatch):
    """The family as an installed package."""
    package = tmp_path / "site"
    install_example(package)
    monkeypatch.syspath_prepend(package)
    for known in (plugins.plugins, plugins.load):
        known.cache_clear()
    yield
    monkeypatch.undo()
    for known in (plugins.plugins, plugins.load):
        known.cache_clear()


def reference(path, spec, tokens):
    """Logits of the last token, from the exported file alone."""
    w = load_file(path / "model.safetensors")

    def norm(x, name):
        return x / (x.square().mean(-1, keepdim=True) + spec.norm_eps).sqrt() * w[name]

    T = len(tokens)
    angles = torch.arange(T)[:, None] * spec.rope_theta ** (-torch.arange(0, spec.head_dim, 2) / spec.head_dim)

    def turned(t):  # [T, heads, head_dim]
        a, b = t[..., 0::2], t[..., 1::2]
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)

    x = w["wte"][tokens]
    for i in range(spec.n_layers):
        h = norm(x, f"h.{i}.attention_norm")
        q, k, v = (h @ w[f"h.{i}.attention.wqkv"].T).view(T, spec.n_heads, 3, spec.head_dim).unbind(2)
        scores = torch.einsum("qhd,khd->hqk", turned(q), turned(k)) / spec.head_dim**0.5
        scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
        attended = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1) @ w[f"h.{i}.attention.wo"].T
        gate = F.silu(h @ w[f"h.{i}.ffn.w1"].T) * (h @ w[f"h.{i}.ffn.w3"].T)
        x = x + attended + gate @ w[f"h.{i}.ffn.w2"].T
    return norm(x, "ln_f")[-1] @ w["lm_head"].T


def test_one_file_and_one_entry_point_are_a_family(parallel, corpus, tmp_path):
    config = run_config(
        tokens=20_000, model={"width": 32, "family": "parallel"}, seq_len=64, batch_size=4, evaluate_tokens=2048, log_every=1
    )
    run = tmp_path / "run"
    pretrain(config, corpus, run, quiet=True)
    losses = [e["loss"] for e in read_metrics(run / "run.jsonl") if e["event"] == "step"]
    assert losses[0] == pytest.approx(torch.tensor(400.0).log().item(), rel=0.01) and losses[-1] < losses[0] - 0.4

    path = run / "model"
    assert json.loads((path / "config.json").read_text())["model_type"] == "parallel"
    model = read_model(path)
    assert type(model).__name__ == "Parallel" and model.spec.family == "parallel"
    tokens = [5, 17, 200, 3]
    with torch.no_grad():
        torch.testing.assert_close(model(torch.tensor([tokens]))[0, -1], reference(path, model.spec, tokens), rtol=1e-4, atol=1e-4)
    runner, n_blocks = make_runner(EngineOptions(path, kv_cache_gib=0.01, threads=1))
    written = generate(Engine(runner, n_blocks), tokens, Sampling(temperature=0, max_tokens=8, ignore_stop=True))
    for token in written:
        assert token == int(reference(path, model.spec, tokens).argmax())
        tokens.append(token)
    assert complete(path, "def ", max_new_tokens=5, temperature=0, top_p=1, seed=0).text.startswith("def ")

    go_on = run_config(tokens=2_000, init_from=str(path), seq_len=64, batch_size=4, evaluate_tokens=2048, log_every=1)
    pretrain(go_on, corpus, tmp_path / "on", quiet=True)
    first = next(e for e in read_metrics(tmp_path / "on" / "run.jsonl") if e["event"] == "step")
    assert first["loss"] < losses[0] - 0.3


def test_an_unknown_family_is_one_sentence():
    with pytest.raises(TenfoldError, match="There is no family 'lama3' .did you mean 'llama3'"):
        shape_of("lama3", 64, 300)
    with pytest.raises(TenfoldError, match="there is no family 'parallel'"):
        replace(llama_shape(32, 100), family="parallel")
