"""Pruning, distillation and quantisation, on tiny models."""

import json

import pytest
import torch
from chat_models import chat_model
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from msgspec import structs
from transformers import AutoModelForCausalLM

from tenfold.learn.distil import distil, gap_after
from tenfold.learn.grid import on_grid
from tenfold.learn.prune import importance, pruned, smaller_shape
from tenfold.learn.quantise import quantise
from tenfold.learn.shrink_options import DistilSettings
from tenfold.learn.tasks.distil import divergence
from tenfold.model.io.export import export
from tenfold.model.io.huggingface import read_spec
from tenfold.model.llama import Llama
from tenfold.spec.errors import TenfoldError
from tenfold.spec.forecasts import read_forecasts
from tenfold.spec.model import ModelSpec, published_model
from tenfold.train.run_file import config_from_fields
from tenfold.train.tasks.find import open_task
from tenfold.train.trainer import fit, standard_hooks

SPEC = ModelSpec("t", dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=96, vocab_size=300, context=64)
SETTINGS = DistilSettings(tokens=40 * 8 * 64, seq_len=64, learning_rate=3e-3)
QAT = DistilSettings(tokens=40 * 8 * 64, seq_len=64, learning_rate=1e-4)
ROWS = torch.randint(0, 300, (4, 32), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def home(corpus, tmp_path_factory):
    """A home with a teacher that has read some of the corpus."""
    home = tmp_path_factory.mktemp("home")
    config = config_from_fields({
        "tokens": 80 * 8 * 64, "model": {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 192},
        "data": {"corpus": str(corpus.directory), "seq_len": 64, "batch_size": 8}, "task": {"evaluate_tokens": 8192},
        "optimizer": {"learning_rate": 0.02},
    }, "test")  # fmt: skip
    fit(open_task(config, home, quiet=True), config, home / "teacher", standard_hooks(config, quiet=True))
    return home


def test_all_that_matters_kept_the_model_is_the_same():
    """Neurons, heads and a layer that add nothing are the ones that go, and the logits stay."""
    torch.manual_seed(0)
    model = Llama(SPEC)
    with torch.no_grad():
        for block in model.layers:
            block.attention.wo.weight.normal_(std=0.1)
            block.ffn.w2.weight.normal_(std=0.1)
            block.ffn.w1.weight[::2] = 0
            block.attention.wqkv.weight[3 * 16 : 4 * 16] = 0  # the values of the first key-value head
    smaller = ModelSpec("s", dim=64, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=16, ffn_dim=48, vocab_size=300, context=64)
    student = pruned(model, smaller, importance(model, ROWS))
    with torch.no_grad():
        torch.testing.assert_close(student(ROWS), model(ROWS), rtol=0, atol=1e-5)


def test_a_share_of_the_parameters_is_kept_and_a_published_shape_can_be_pruned():
    for keep in (0.9, 0.5, 0.25):
        spec = published_model("llama-3.2-1b")
        found = smaller_shape(spec, keep)
        assert 0.8 * keep < found.parameters().total / spec.parameters().total <= keep
        assert found.head_dim == spec.head_dim and found.n_heads / found.n_kv_heads == spec.n_heads / spec.n_kv_heads
    assert smaller_shape(SPEC, 0.6, layers=1).n_layers == 1
    with pytest.raises(TenfoldError, match="cannot be pruned to 0.01"):
        smaller_shape(SPEC, 0.01)
    with pytest.raises(TenfoldError, match="layers"):
        smaller_shape(SPEC, 0.5, layers=3)
    with pytest.raises(TenfoldError, match="llama4"):
        smaller_shape(published_model("llama-4-scout"), 0.5)


def test_divergence_is_that_of_pytorch_and_top_k_takes_the_rest_as_one():
    p, q = (torch.randn(5, 40, dtype=torch.float64).log_softmax(-1) for _ in "pq")
    whole = torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum")
    torch.testing.assert_close(divergence(p, q), whole)
    some = [divergence(p, q, k) for k in (1, 10, 39)]
    assert 0 < some[0] < some[1] < some[2] <= whole + 1e-5  # coarser tokens tell less apart
    top = p[0].argmax()
    a, b = p[0, top].exp(), q[0, top].exp()
    torch.testing.assert_close(divergence(p[:1], q[:1], 1), a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log())


def test_the_grids_are_those_of_llamacpp():
    weight = torch.randn(6, 64)
    weight[0, :32] = 0
    for grid, kind in (("int4", GGMLQuantizationType.Q4_0), ("int8", GGMLQuantizationType.Q8_0)):
        ours = on_grid(weight, grid)
        theirs = torch.from_numpy(dequantize(quantize(weight.numpy(), kind), kind))
        step = weight.unflatten(-1, (-1, 32)).abs().amax(-1) / (8 if grid == "int4" else 127)
        assert ((ours - theirs).unflatten(-1, (-1, 32)).abs() <= 1.01 * step[..., None]).all()  # ties may fall either way
        assert (ours == theirs).float().mean() > 0.95
        again = torch.from_numpy(dequantize(quantize(ours.numpy(), kind), kind))
        torch.testing.assert_close(again, ours, rtol=1e-3, atol=0)


def test_a_student_is_forecast_taught_and_half_the_size(corpus, home):
    result = distil(home / "teacher" / "model", str(corpus.directory), home / "student", SETTINGS, quiet=True)
    said = json.loads((home / "student" / "distil.json").read_text())
    scored = next(one for one in read_forecasts(home) if one.forecast.key == "learn/student/student_loss")
    assert (
        said["teacher_loss"] < scored.forecast.median < said["pruned_loss"] and scored.measured == result.loss < said["pruned_loss"]
    )
    sizes = [read_spec(home / name / "model").parameters().total for name in ("teacher", "student")]
    assert sizes[1] <= sizes[0] / 2
    assert AutoModelForCausalLM.from_pretrained(home / "student" / "model").num_parameters() == sizes[1]
    again = distil(home / "teacher" / "model", str(corpus.directory), home / "student", SETTINGS, quiet=True)
    assert again.loss == result.loss
    for change, said in (
        ({"keep": 0.25}, "was pruned to another shape"),
        ({"learning_rate": 1e-4}, "was begun with other settings"),
    ):
        other = structs.replace(SETTINGS, **change)
        with pytest.raises(TenfoldError, match=said):
            distil(home / "teacher" / "model", str(corpus.directory), home / "student", other, quiet=True)


def test_the_forecast_falls_with_tokens_and_begins_at_the_gap():
    gaps = [gap_after(2.0, 1e6, tokens) for tokens in (0, 1e4, 1e6, 1e8)]
    assert gaps[0] == 2.0 and gaps == sorted(gaps, reverse=True)


def test_training_for_the_grid_costs_less_than_rounding(corpus, home, tmp_path):
    model, text = home / "teacher" / "model", str(corpus.directory)
    plain = quantise(model, "int4", text, home / "rounded", quiet=True)
    trained = quantise(model, "int4", text, home / "trained", QAT, quiet=True)
    eight = quantise(model, "int8", text, home / "eight", quiet=True)
    assert eight["kl_nats"][2] < plain["kl_nats"][1] and trained["kl_nats"][0] < plain["kl_nats"][0]
    assert plain["perplexity"][1] > plain["perplexity"][0]
    packed = export(home / "trained" / "model", "gguf:q4_0", tmp_path / "x.gguf")
    assert packed.path.exists()


def test_a_teacher_with_another_tokenizer_is_refused(corpus, home):
    chat_model(home / "other")
    config = config_from_fields({
        "tokens": 1024, "init_from": str(home / "teacher" / "model"), "task": {"name": "distil", "teacher": str(home / "other")},
        "data": {"corpus": str(corpus.directory), "seq_len": 64, "batch_size": 4},
    }, "test")  # fmt: skip
    with pytest.raises(TenfoldError, match="another tokenizer than the text"):
        open_task(config, home, quiet=True)
