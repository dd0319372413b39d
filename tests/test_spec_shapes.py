"""The one dial: the same model from the same compute, for ladder, trainer and planner; and the published family on the way."""

import json
from dataclasses import fields, replace

import pytest

from tenfold.plan.costs.site_options import SiteOptions
from tenfold.plan.fleet.shares import FleetRequest, plan_fleet
from tenfold.plan.plan import solve
from tenfold.plan.request import GpuRequest, Request, StepRequest
from tenfold.plan.workload.machine import machine
from tenfold.plan.workload.shape import resolve
from tenfold.scale.ladder import plan_ladder
from tenfold.spec.errors import TenfoldError
from tenfold.spec.laws import LLAMA3, REACH, optimum, own_law
from tenfold.spec.model import published_model
from tenfold.spec.shapes import Experts, llama4_shape, llama_shape, shape_for_flops, shape_for_params, shape_of, widths
from tenfold.train.config import RunConfig
from tenfold.train.resolve import resolve_model, with_own_law
from tenfold.train.run_file import write_config


@pytest.mark.parametrize("name", ["llama-3.2-1b", "llama-3-8b", "llama-3-70b", "llama-3.1-405b"])
def test_the_published_models_lie_on_the_way(name):
    published = published_model(name)
    shape = llama_shape(published.dim, published.vocab_size, tied=published.tied)
    sizes = [f.name for f in fields(shape) if f.name.startswith(("n_", "dim", "ffn", "head_dim", "vocab"))]
    assert {s: getattr(shape, s) for s in sizes} == {s: getattr(published, s) for s in sizes}
    assert shape_for_params(published.parameters().matrix_active, published.vocab_size).dim == published.dim


@pytest.mark.parametrize(
    ("width", "layers", "heads", "ffn"), [(24, 2, 2, 64), (64, 2, 4, 168), (160, 4, 5, 424), (256, 6, 8, 680), (512, 13, 16, 1368)]
)
def test_shapes_of_the_ladder(width, layers, heads, ffn):
    """Kept climbs were trained in these shapes."""
    dense, experts = (shape_of(family, width, 2048) for family in ("llama3", "llama4"))
    assert (dense.n_layers, dense.n_heads, dense.n_kv_heads, dense.ffn_dim) == (layers, heads, heads, ffn)
    assert (experts.n_experts, experts.experts_per_token, experts.n_shared_experts, experts.moe_every) == (16, 1, 1, 1)
    assert experts.expert_ffn_dim == round(ffn / 2 / 8) * 8


@pytest.mark.parametrize("family", ["llama3", "llama4"])
def test_models_grow_with_width(family):
    sizes = [shape_of(family, width, 2048).parameters().total for width in widths()]
    assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes)


@pytest.mark.parametrize("flops", [1e12, 1e15, 1e20, 1e24, 4e26])
def test_a_compute_is_spent(flops):
    spec, tokens, *_ = shape_for_flops(flops, 2048, 256)
    assert tokens * spec.train_flops_per_token(256) == pytest.approx(flops, rel=0.01)


def test_tokens_per_parameter_follow_llama_3s_law_where_it_asks_for_more():
    ratios = {}
    for flops in (1e18, 1e21, 2e21, 1e24, 3.8e25):
        spec, tokens, *_ = shape_for_flops(flops, 128_256, 8192)
        ratios[flops] = tokens / spec.parameters().matrix_active
    assert [ratios[f] for f in (1e18, 1e21, 2e21)] == pytest.approx([20, 20, 20], rel=0.4)  # widths are as far apart
    best = optimum(3.8e25, LLAMA3)
    assert ratios[3.8e25] == pytest.approx(best.tokens / best.params, rel=0.35)
    assert ratios[1e24] < ratios[3.8e25]


def test_experts_keep_the_active_parameters():
    spec = shape_for_params(17e9, 128_256, "llama4", Experts(16))
    assert spec.parameters().active == pytest.approx(17e9, rel=0.25)
    assert spec.parameters().total > 4 * spec.parameters().active
    dense = llama_shape(4096, 128_256)
    two = llama4_shape(4096, 128_256, experts=Experts(64, per_token=3, shared=1, every=2))
    assert two.expert_ffn_dim * 4 == pytest.approx(dense.ffn_dim, rel=0.02)
    with pytest.raises(TenfoldError, match="20 experts per token cannot be chosen from 16"):
        llama4_shape(4096, 128_256, experts=Experts(16, per_token=20))


@pytest.mark.parametrize(("flops", "family"), [(3e13, "llama3"), (1e18, "llama3"), (1e15, "llama4")])
def test_trainer_and_planner_derive_the_same_model(flops, family):
    trained = shape_for_flops(flops, 2048, 256, family=family)
    planned = resolve(Request(flops=flops, vocab_size=2048, experts=16 if family == "llama4" else 0), 256)
    assert replace(planned.spec, name="") == replace(trained.spec, name="")
    assert planned.tokens == trained.tokens


def law_of(home, generation, family, largest, exponent=0.5, params=1e6):
    folder = home / generation
    folder.mkdir()
    optima = [(largest * 10**k, params * 10 ** (k * exponent)) for k in range(5)]
    law = {"optimum": optima, "flops_per_nd": 6.0, "largest_flops": largest, "n_points": 20}
    (folder / "law.json").write_text(json.dumps(law))
    (folder / "climb.json").write_text(json.dumps({"family": family}))


def test_the_law_of_the_newest_climb_is_used_within_its_reach(tmp_path):
    law_of(tmp_path, "g2", "llama3", 1e13)
    law_of(tmp_path, "g10", "llama3", 1e14)
    law_of(tmp_path, "g11", "llama4", 1e14)
    newest = str(tmp_path / "g10" / "law.json")
    assert own_law(tmp_path, 1e15) == newest
    assert own_law(tmp_path, 1e15, "llama4") == str(tmp_path / "g11" / "law.json")
    assert own_law(tmp_path, 2 * REACH * 1e14) is None
    (tmp_path / "g12").mkdir()
    (tmp_path / "g12" / "law.json").write_text("{}")  # of an older version
    assert own_law(tmp_path, 1e15) == newest
    planned = resolve(Request(flops=1e15, vocab_size=2048), 256, home=tmp_path)
    assert planned.spec.dim == shape_for_flops(1e15, 2048, 256, law=newest).spec.dim
    assert "10 times beyond its largest run" in planned.reasons[0]
    # params go as the root of the compute: 1e6 x 10^0.75 at 10^1.5 times the largest run
    assert optimum(1e14 * 10**1.5, newest).params == pytest.approx(1e6 * 10**0.75)
    assert optimum(1e20, newest).params == pytest.approx(1e9)


def test_a_run_by_compute_takes_the_law_of_the_newest_climb_and_keeps_it(tmp_path):
    law_of(tmp_path, "g2", "llama3", 1e14, params=3e5)
    asked, directory = RunConfig(flops=1e15), tmp_path / "run"
    config = with_own_law(asked, tmp_path, directory)
    trained, tokens = resolve_model(config, 2048)
    planned = resolve(Request(flops=1e15, vocab_size=2048), config.data.seq_len, home=tmp_path)
    assert (trained.dim, trained.n_layers, tokens) == (planned.spec.dim, planned.spec.n_layers, planned.tokens)
    assert trained.dim != resolve_model(asked, 2048)[0].dim
    directory.mkdir()
    write_config(config, directory / "run.toml")
    law_of(tmp_path, "g3", "llama3", 1e14, params=3e6)
    assert with_own_law(asked, tmp_path, directory) == config
    assert with_own_law(asked, tmp_path, tmp_path / "another").law == str(tmp_path / "g3" / "law.json")
    images = RunConfig(flops=1e15, model={"vision": {"n_layers": 2}})  # says nothing of the text model's size
    assert with_own_law(images, tmp_path, tmp_path / "another").law == str(tmp_path / "g3" / "law.json")
    shaped = RunConfig(flops=1e15, model={"width": 64})
    assert with_own_law(shaped, tmp_path, tmp_path / "another") is shaped


def test_a_law_without_a_table_is_refused_in_a_sentence(tmp_path):
    path = tmp_path / "law.json"
    with pytest.raises(TenfoldError, match="no law at"):
        optimum(1e15, str(path))
    path.write_text(json.dumps({"flops_per_nd": 6.0}))
    with pytest.raises(TenfoldError, match="older version without 'optimum'"):
        optimum(1e15, str(path))
    path.write_text("[")
    with pytest.raises(TenfoldError, match="is not a law"):
        optimum(1e15, str(path))


def test_a_ladder_takes_its_models_from_the_dial():
    rungs = plan_ladder(1e13, 2048, 128, family="llama4")
    for rung in rungs:
        spec = shape_of("llama4", rung.width, 2048)
        assert rung.params == spec.parameters().matrix_active
        assert rung.tokens * spec.train_flops_per_token(128) == pytest.approx(rung.flops, rel=1e-3)


def test_a_fleet_trains_the_model_that_a_plan_of_the_same_compute_does(tmp_path):
    law_of(tmp_path, "g1", "llama3", 1e23, params=3e10)
    asked, step, part = Request(flops=1e24), StepRequest(), machine("h100")
    one = solve(asked, GpuRequest(gpus=512), part, step, tmp_path)
    whole = plan_fleet(asked, FleetRequest(gpus=1024), part, step, SiteOptions(), tmp_path)
    trained, plain = whole.roles[0].does, solve(asked, GpuRequest(gpus=512), part, step)
    assert trained["tokens"] == one.workload.tokens != plain.workload.tokens
    assert trained["parameters_total"] == one.workload.spec.parameters().total
