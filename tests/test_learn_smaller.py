"""Pruning, distillation and quantisation, on tiny models."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from chat_models import chat_model
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from transformers import AutoModelForCausalLM

from tenfold.learn.distil import distil, gap_after
from tenfold.learn.grid import left_as_they_are, on_grid, round_to_grid, train_on_grid
from tenfold.learn.prune import importance, pruned, smaller_shape
from tenfold.learn.quantise import quantise
from tenfold.learn.rotate import rotated
from tenfold.learn.shrink_options import DistilSettings, QuantiseOptions
from tenfold.learn.tasks.distil import divergence
from tenfold.model.io.export import export
from tenfold.model.io.gguf_writer import quantised
from tenfold.model.io.huggingface import read_spec, write_model
from tenfold.model.llama import Llama
from tenfold.model.llama4 import Llama4
from tenfold.model.moe import expert_layers
from tenfold.spec.errors import TenfoldError
from tenfold.spec.forecasts import read_forecasts
from tenfold.spec.model import ModelSpec, published_model
from tenfold.spec.shapes import llama4_shape
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
    with pytest.raises(TenfoldError, match="llama-4-scout is no dense model of llama3"):
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
    left = home / "student-pilot-4"  # by a kill before it was removed
    left.mkdir()
    again = distil(home / "teacher" / "model", str(corpus.directory), home / "student", SETTINGS, quiet=True)
    assert again.loss == result.loss and not left.exists()
    for change, said in (
        ({"keep": 0.25}, "was pruned to another shape"),
        ({"learning_rate": 1e-4}, "was begun with other settings"),
    ):
        other = structs.replace(SETTINGS, **change)
        with pytest.raises(TenfoldError, match=said):
            distil(home / "teacher" / "model", str(corpus.directory), home / "student", other, quiet=True)


def test_a_shorter_student_of_other_settings_is_no_part_of_the_forecast(corpus, home):
    config = distil_config(home, corpus)
    fit(open_task(config, home, quiet=True), config, home / "taught-pilot-4", standard_hooks(config, quiet=True))
    with pytest.raises(TenfoldError, match="taught-pilot-4 was begun with other settings"):
        distil(home / "teacher" / "model", str(corpus.directory), home / "taught", SETTINGS, quiet=True)


@given(st.floats(0.1, 1), st.floats(-0.08, 0), st.floats(0.01, 2))
def test_a_gap_is_continued_as_it_fell(slope, bend, first):
    def gap(tokens):
        x = math.log(tokens / 1e4)
        return first * math.exp(-slope * x + bend * x * x)

    points = [(tokens, gap(tokens)) for tokens in (1e4, 4e4, 16e4)]
    assert gap_after(points, 64e4) == pytest.approx(gap(64e4), rel=1e-6)
    line = [(tokens, first * (tokens / 1e4) ** -slope) for tokens in (4e4, 16e4)]
    assert gap_after(line, 64e4) == pytest.approx(first * 64**-slope, rel=1e-6)
    assert gap_after([(1e4, 1.0), (4e4, 0.5), (16e4, 0.49)], 64e4) <= 0.49


def test_training_for_the_grid_costs_less_than_rounding(corpus, home, tmp_path):
    model, text = home / "teacher" / "model", str(corpus.directory)
    plain = quantise(model, text, home / "rounded", QuantiseOptions(), QAT, quiet=True)
    trained = quantise(model, text, home / "trained", QuantiseOptions(qat=True), QAT, quiet=True)
    eight = quantise(model, text, home / "eight", QuantiseOptions(to="int8"), QAT, quiet=True)
    assert eight["kl_nats"][2] < plain["kl_nats"][1] and trained["kl_nats"][0] < plain["kl_nats"][0]
    assert plain["perplexity"][1] > plain["perplexity"][0]
    packed = export(home / "trained" / "model", "gguf:q4_0", tmp_path / "x.gguf")
    assert packed.path.exists()


def test_a_rotation_of_another_seed_is_made_anew_under_the_same_name(corpus, home):
    def turned(name, seed):
        settings = structs.replace(QAT, seed=seed)
        quantise(home / "teacher" / "model", str(corpus.directory), home / name, QuantiseOptions(rotate=True), settings, quiet=True)
        return read_model_weights(home / name / "rotated")

    first, again, other = turned("turned-twice", 0), turned("turned-twice", 1), turned("turned-other", 1)
    torch.testing.assert_close(again, other)
    assert not torch.allclose(again["embedding.weight"], first["embedding.weight"], atol=1e-2)


def test_matrices_that_groups_do_not_fill_are_counted_or_refused(corpus, home):
    spec = read_spec(home / "teacher" / "model")
    for name, dim, ffn_dim in (("none", 40, 72), ("some", 64, 72)):
        shape = replace(spec, dim=dim, ffn_dim=ffn_dim, head_dim=dim // spec.n_heads)
        write_model(Llama(shape), home / name, tokenizer_directory=home / "teacher" / "model")
    with pytest.raises(TenfoldError, match="nothing would be rounded"):
        quantise(home / "none", str(corpus.directory), home / "none-4", QuantiseOptions(), SETTINGS, quiet=True)
    said = quantise(home / "some", str(corpus.directory), home / "some-4", QuantiseOptions(), SETTINGS, quiet=True)
    assert said["left"] == spec.n_layers  # of each layer, the matrix that reads the hidden neurons


def test_a_teacher_with_another_tokenizer_is_refused(corpus, home):
    chat_model(home / "other")
    config = config_from_fields({
        "tokens": 1024, "init_from": str(home / "teacher" / "model"), "task": {"name": "distil", "teacher": str(home / "other")},
        "data": {"corpus": str(corpus.directory), "seq_len": 64, "batch_size": 4},
    }, "test")  # fmt: skip
    with pytest.raises(TenfoldError, match="another tokenizer than the text"):
        open_task(config, home, quiet=True)


def distil_config(home, corpus, **task):
    teacher = str(home / "teacher" / "model")
    return config_from_fields({
        "tokens": 6 * 4 * 64, "init_from": teacher, "task": {"name": "distil", "teacher": teacher, "evaluate_tokens": 1024, **task},
        "data": {"corpus": str(corpus.directory), "seq_len": 64, "batch_size": 4}, "optimizer": {"name": "adamw"},
    }, "test")  # fmt: skip


def test_several_teachers_are_the_mean_of_their_probabilities_and_the_store_says_what_they_do(corpus, home, tmp_path, monkeypatch):
    """The loss against two teachers, live, from a store that is made, and from one that is read without the teachers' weights."""
    from tenfold.learn.tasks import distil as module
    from tenfold.model.io.huggingface import read_model, write_model

    other = read_model(home / "teacher" / "model")
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1 + 0.1 * torch.randn_like(p))
    write_model(other, tmp_path / "other", tokenizer_directory=home / "teacher" / "model")
    given = {"teachers": [str(tmp_path / "other")], "top_k": 16}
    live = open_task(distil_config(home, corpus, **given), home, quiet=True)
    stored = open_task(distil_config(home, corpus, **given, store=str(tmp_path / "store")), home, quiet=True)
    student = read_model(home / "teacher" / "model")
    found = [task.loss(student, task.rows(1, slice(0, 4)).on(torch.device("cpu"), slice(1, 3))) for task in (live, stored)]
    torch.testing.assert_close(found[1].extra, found[0].extra, rtol=2e-3, atol=1e-2)
    batch = live.rows(1, slice(0, 4)).on(torch.device("cpu"), slice(1, 3))
    with torch.no_grad():
        p = (student(batch.tokens, batch.document).softmax(-1) + other(batch.tokens, batch.document).softmax(-1)) / 2
        q = student(batch.tokens, batch.document).log_softmax(-1)
    counted = batch.targets >= 0
    expected = divergence(p[counted].log(), q[counted], 16)
    torch.testing.assert_close(found[0].loss + found[0].extra, expected, rtol=1e-4, atol=1e-3)
    again = open_task(distil_config(home, corpus, **given, store=str(tmp_path / "store")), home, quiet=True)
    monkeypatch.setattr(module, "read_model", None)  # no weights of a teacher are read
    batch = again.rows(1, slice(0, 4)).on(torch.device("cpu"), slice(1, 3))
    assert torch.equal(again.loss(student, batch.padded(3)).extra, found[1].extra)


def test_a_store_that_is_damaged_is_made_again_and_one_without_top_k_is_refused(corpus, home, tmp_path):
    task = open_task(distil_config(home, corpus, top_k=8, store=str(tmp_path)), home, quiet=True)
    first = task.rows(0, slice(0, 4)).top
    (file,) = tmp_path.glob("*/step-*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    for before, after in zip(first, task.rows(0, slice(0, 4)).top, strict=True):
        assert (before == after).all()
    with pytest.raises(TenfoldError, match="give top_k"):
        open_task(distil_config(home, corpus, store=str(tmp_path)), home, quiet=True)
    chat_model(tmp_path / "other")
    with pytest.raises(TenfoldError, match="another tokenizer than the text"):
        open_task(distil_config(home, corpus, teachers=[str(tmp_path / "other")]), home, quiet=True)


def test_a_rotated_model_is_the_same_function_without_a_channel_that_stands_out():
    torch.manual_seed(0)
    model = Llama(ModelSpec("t", dim=48, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=96, vocab_size=300, context=64, tied=True))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * (0.1 if p.ndim == 2 else 1))
        model.embedding.weight[:, 3] *= 30
    turned = rotated(model)
    with torch.no_grad():
        torch.testing.assert_close(turned(ROWS), model(ROWS), rtol=1e-4, atol=1e-3)

    def peak(one):
        weight = one.embedding.weight.detach()
        return float(weight.abs().amax(0).max() / weight.std())

    assert peak(turned) < peak(model) / 2 and not turned.spec.tied
    with pytest.raises(TenfoldError, match="only such models can be rotated"):
        rotated(SimpleNamespace(spec=published_model("llama-4-scout")))


def test_weights_on_any_grid_of_q4_0_keep_their_values_in_gguf():
    """Blocks whose largest weight is at any step, as tuned rounding leaves them."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(-8, 8, (64, 32), generator=generator).float()
    for row, most in enumerate(list(range(1, 8)) * 9):
        steps[row] = steps[row].clamp(-most, most)
    steps[-1] = 0
    scale = (torch.rand(64, 1, generator=generator) / 50 + 1e-3).half().float()
    rows = (steps * scale).numpy()
    kept = dequantize(quantised(rows, "Q4_0"), GGMLQuantizationType.Q4_0)
    assert abs(kept - rows).max() <= 1e-3 * scale.max()
    assert abs(dequantize(quantize(rows, GGMLQuantizationType.Q4_0), GGMLQuantizationType.Q4_0) - rows).max() > 0.1 * scale.min()
    free = torch.randn(8, 64, generator=generator).numpy()
    assert (quantised(free, "Q4_0") == quantize(free, GGMLQuantizationType.Q4_0)).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (QuantiseOptions(to="int8", rounding="tuned"), "Tuned rounding is for 4 bits"),
        (QuantiseOptions(qat=True, rounding="tuned"), "give --qat or --rounding tuned"),
    ],
)
def test_options_of_rounding_that_do_not_fit_are_refused(corpus, home, options, said):
    with pytest.raises(TenfoldError, match=said):
        quantise(home / "teacher" / "model", str(corpus.directory), home / "refused", options, QAT, quiet=True)
    assert not (home / "refused").exists()


@pytest.mark.slow
def test_rounding_that_is_tuned_costs_less_and_is_packed_without_loss(corpus, home, tmp_path):
    pytest.importorskip("auto_round")
    model, text = home / "teacher" / "model", str(corpus.directory)
    plain = quantise(model, text, home / "nearest", QuantiseOptions(), QAT, quiet=True)
    options = QuantiseOptions(rounding="tuned", rounding_steps=60, samples=64)
    tuned = quantise(model, text, home / "tuned", options, QAT, quiet=True)
    assert tuned["kl_nats"][0] < 0.8 * plain["kl_nats"][0]
    turned = quantise(model, text, home / "turned", QuantiseOptions(rotate=True), QAT, quiet=True)
    assert turned["kl_nats"][0] < 3 * plain["kl_nats"][0] and not read_spec(home / "turned" / "model").tied
    export(home / "tuned" / "model", "gguf:q4_0", tmp_path / "x.gguf")
    ours, packed = (read_model_weights(path) for path in (home / "tuned" / "model", tmp_path / "x.gguf"))
    for name, weight in ours.items():
        if name.startswith("blocks.") and weight.ndim == 2:
            assert (packed[name] - weight).abs().max() <= 1e-3 * weight.abs().max()


def read_model_weights(path):
    from tenfold.model.io.huggingface import read_model

    return dict(read_model(path).named_parameters())


def test_a_shape_that_cannot_be_is_refused_before_the_text_is_read(tmp_path):
    write_model(Llama(SPEC), tmp_path / "teacher")
    with pytest.raises(TenfoldError, match="cannot be pruned to 0.01"):
        distil(tmp_path / "teacher", str(tmp_path / "no such text"), tmp_path / "home" / "student", DistilSettings(keep=0.01))
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("grid", ["int8", "int4"])
def test_routers_are_not_rounded(grid):
    torch.manual_seed(0)
    model = Llama4(llama4_shape(64, 300))
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.ndim == 2}
    train_on_grid(model, grid)
    round_to_grid(model, grid)
    same = {name for name, p in model.named_parameters() if name in before and p.equal(before[name])}
    routers = {name for name in before if name.endswith("router.weight")}
    other = {name for name, p in before.items() if p.shape[-1] % 32}  # rows that no group divides
    assert routers and same == routers | other and {type(experts.router) for experts in expert_layers(model)} == {torch.nn.Linear}
    assert left_as_they_are(model)[1] == sum(name.startswith("blocks.") for name in before) - len(routers)
