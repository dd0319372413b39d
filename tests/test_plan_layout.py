"""The search, memory, shapes, and what is said about bad input."""

import json
import math
from dataclasses import replace
from statistics import median

import pytest

from tenfold.plan.explain import NAMES, explain
from tenfold.plan.plan import gpus_for_days, make_plan, solve
from tenfold.plan.request import GpuRequest, Request, StepRequest
from tenfold.plan.validation.published import read_layouts
from tenfold.plan.validation.validate import hours_errors, hours_misses, with_overhead
from tenfold.plan.workload.machine import machine
from tenfold.plan.workload.memory import memory
from tenfold.plan.workload.search import divisors, search
from tenfold.plan.workload.shape import resolve
from tenfold.plan.workload.step_time import step_time
from tenfold.spec.errors import TenfoldError
from tenfold.spec.laws import optimum
from tenfold.spec.layout import Layout, check
from tenfold.spec.model import published_model


def test_memory_of_torchtitan():
    rows = [row for row in read_layouts()[0] if row.memory_gib]
    errors = [memory(r.spec, r.layout, r.machine).total_gib / r.memory_gib - 1 for r in rows]
    assert len(rows) == 10
    assert sum(map(abs, errors)) / len(errors) <= 0.12


def test_gpu_hours_of_published_runs():
    hours = hours_errors()
    errors = [abs(planned / told - 1) for _, told, planned in with_overhead(hours)]
    assert len(hours) == 20
    assert median(errors) <= 0.20
    assert len(hours_misses(hours)) == sum(e > 0.2 for e in errors)
    # one model alone is judged by the factor of the others
    alone = with_overhead(hours[:1], hours)
    assert alone == with_overhead(hours)[:1]
    assert all(planned < told for _, told, planned in hours)  # reported hours hold the steps, and more


@pytest.mark.parametrize(("stack", "each"), [("megatron", 18), ("tenfold", 16)])  # a bfloat16 copy of the weights, or none
def test_state_without_sharding_is_16_or_18_bytes_a_parameter(stack, each):
    spec, part = published_model("llama-3.1-8b"), machine("h100", stack)
    needed = memory(spec, Layout(seq_len=128, zero=0), part)
    state = needed.parameters_gib + needed.gradients_gib + needed.optimizer_gib
    assert state * 2**30 == pytest.approx(each * spec.parameters().total, rel=0.01)
    sharded = memory(spec, Layout(dp_shard=64, global_batch=64, seq_len=128, zero=3), part)
    assert sharded.optimizer_gib == pytest.approx(needed.optimizer_gib / 64, rel=0.01)
    assert not needed.fits


@pytest.fixture(scope="module")
def llama_405b():
    return search(published_model("llama-3.1-405b"), 16_384, machine("h100"), seq_len=8192, global_batch=2048)


def test_the_search_keeps_its_promises(llama_405b):
    found = [llama_405b.best, *llama_405b.others]
    assert len(found) == 10
    assert all(c.memory.fits and c.layout.world == 16_384 and not check(c.layout, published_model("llama-3.1-405b")) for c in found)
    assert all(c.layout.global_batch % (c.layout.dp * c.layout.micro_batch) == 0 for c in found)
    assert [c.slower_pct for c in found] == sorted(c.slower_pct for c in found)
    assert all(c.loses_by for c in llama_405b.others)
    assert llama_405b.best.layout.words() not in llama_405b.second_wins_if


def test_the_search_beats_what_meta_ran():
    spec, part = published_model("llama-3.1-405b"), machine("h100", "megatron")  # a trainer like theirs
    theirs = Layout(
        tp=8,
        pp=16,
        dp_shard=128,
        micro_batch=1,
        global_batch=2048,
        seq_len=8192,
        schedule="interleaved",
        virtual_stages=8,
        zero=2,
        activation_checkpointing="selective",
    )
    assert memory(spec, theirs, part).fits
    best = search(spec, 16_384, part, seq_len=8192, global_batch=2048).best
    assert best.tokens_per_s >= theirs.tokens_per_step / step_time(spec, theirs, part).total_s


def test_laws_agree_with_their_papers():
    best = optimum(3.8e25, "llama3")
    assert (best.params, best.tokens) == (pytest.approx(402e9, rel=0.05), pytest.approx(16.55e12, rel=0.02))
    best = optimum(5.76e23, "chinchilla")
    assert 6 * best.params * best.tokens == pytest.approx(5.76e23)
    # approach 3 of the paper's table A3: 40B parameters at Gopher's compute
    assert best.params == pytest.approx(40e9, rel=0.25)


def test_gpus_for_days_hold_the_days():
    shape, part = resolve(Request(flops=1e23)), machine("h100")
    gpus = gpus_for_days(shape, 20, part)
    assert gpus % 8 == 0
    plan = make_plan(shape, gpus, part)
    assert plan.workload.days <= 20 < 2 * plan.workload.days
    assert plan.workload.mfu < 1
    for name in NAMES:
        assert explain(plan, name)


@pytest.mark.parametrize(
    ("asked", "fixed", "says"),
    [
        (Request(after="llama-3.1-405x"), GpuRequest(gpus=8), "llama-3.1-405b"),
        (Request(after="llama-3.1-8b", flops=1e22), GpuRequest(gpus=8), "--after and --flops"),
        (Request(flops=1e24, law="chinchila"), GpuRequest(gpus=8), "chinchilla"),
        (Request(flops=1e24), GpuRequest(), "--gpus, --days or --budget-usd"),
        (Request(), GpuRequest(gpus=8), "how large"),
        (Request(after="llama-3.1-405b"), GpuRequest(gpus=64), "GiB"),
        (Request(after="llama-3.1-405b"), GpuRequest(gpus=16384, days=10), "need .* days, not 10"),
        (Request(flops=1e24), GpuRequest(gpus=8, budget_usd=1e6), "--budget-usd and --flops"),
        (Request(flops=1e24), GpuRequest(gpus=0, days=-1), "--days"),
        (Request(flops=1e24), GpuRequest(gpus=1009), "take 1,008, whole servers"),
        (Request(flops=1e24, times=5), GpuRequest(gpus=64), "--after"),
        (Request(flops=1e24, experts_per_token=2), GpuRequest(gpus=64), "--experts"),
        (Request(after="llama-3.1-405b"), GpuRequest(gpus=64), "at least [0-9,]+ GPUs, or parts with more memory"),
    ],
)
def test_bad_requests_say_what_binds(asked, fixed, says):
    with pytest.raises(TenfoldError, match=says):
        solve(asked, fixed, machine("h100"))


@pytest.mark.parametrize(
    ("flags", "says"),
    [({"seq_len": 0}, "--seq-len"), ({"global_batch": -2}, "--global-batch"), ({"dtype": "fp9"}, "did you mean 'fp8'")],
)
def test_impossible_flags_are_named(flags, says):
    with pytest.raises(TenfoldError, match=says):
        solve(Request(flops=1e24), GpuRequest(gpus=64), machine("h100"), StepRequest(**flags))
    with pytest.raises(TenfoldError, match=says):
        solve(Request(flops=1e24), GpuRequest(days=30), machine("h100"), StepRequest(**flags))


def test_a_repeated_corpus_is_said():
    notes = " ".join(resolve(Request(flops=1e26, unique_tokens=1e12)).reasons)
    assert "beyond 4 epochs" in notes


def test_a_budget_is_spent_and_not_passed():
    plan = solve(Request(), GpuRequest(budget_usd=2e6), machine("h100"))
    assert 0.7 * 2e6 < plan.workload.gpu_hours * 2.95 < 1.1 * 2e6


def test_a_model_of_ones_own(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text("dim = 2048\nn_layers = 16\nn_heads = 16\nn_kv_heads = 8\nffn_dim = 8192\nvocab_size = 32000\n")
    shape = resolve(Request(model=path, tokens=1e11))
    assert (shape.spec.dim, shape.tokens) == (2048, 1e11)
    path.write_text("dim = 'wide'\nlayers = 3\n")
    with pytest.raises(TenfoldError, match="is no model"):
        resolve(Request(model=path, tokens=1e11))


def test_divisors():
    assert divisors(36) == [d for d in range(1, 37) if 36 % d == 0]


def test_calibration_finds_the_machine_again(tmp_path):
    from dataclasses import asdict

    from tenfold.plan.validation.calibrate import calibrate, calibrated, write
    from tenfold.spec.shapes import llama_shape

    spec, part = llama_shape(1024, 32000), machine("h100")
    layout = Layout(micro_batch=8, global_batch=8, seq_len=1024, zero=0)
    slow = 1.7 * step_time(spec, layout, part).total_s
    per_token = spec.train_flops_per_token(1024)
    rate = layout.tokens_per_step / slow
    start = {
        "event": "start", "model": asdict(spec), "hyperparameters": {"batch_size": 8}, "device": "cuda",
        "flops_per_token": per_token, "mfu_of": "H100 SXM's published dense bf16 rate",
    }  # fmt: skip
    end = {"event": "end", "tokens_per_s": rate, "mfu": rate * per_token / 989e12}
    (tmp_path / "run.jsonl").write_text(json.dumps(start) + "\n" + json.dumps(end) + "\n")
    (tmp_path / "run.toml").write_text("seq_len = 1024\n")
    found = calibrate(tmp_path)
    write(found, tmp_path / "home")
    again, words = calibrated(part, "h100", tmp_path / "home")
    assert again is not None and "Calibrated by" in words
    assert step_time(spec, layout, again).total_s == pytest.approx(slow, rel=0.01)
    assert math.isclose(found.measured_step_s, slow, rel_tol=1e-6)
    assert found.calibrated_step_s == pytest.approx(slow, rel=0.01)
    unfinished = tmp_path / "cut"
    unfinished.mkdir()
    (unfinished / "run.jsonl").write_text(json.dumps(start) + '\n{"event": "st')
    with pytest.raises(TenfoldError, match="not finished"):
        calibrate(unfinished)


def test_calibration_by_several_processes(tmp_path):
    """Twice as slow as planned on four GPUs is half the rates, not an eighth of them."""
    from dataclasses import asdict

    from tenfold.plan.validation.calibrate import calibrate
    from tenfold.spec.shapes import llama_shape

    spec, part = llama_shape(2048, 32000), machine("h100")
    layout = Layout(dp_shard=2, tp=2, micro_batch=4, global_batch=16, seq_len=1024)
    rate = layout.tokens_per_step / (2 * step_time(spec, layout, part).total_s)
    per_token = spec.train_flops_per_token(1024)
    start = {
        "event": "start", "model": asdict(spec), "hyperparameters": {"batch_size": 16}, "device": "cuda", "processes": 4,
        "flops_per_token": per_token, "mfu_of": "H100 SXM's published dense bf16 rate",
    }  # fmt: skip
    end = {"event": "end", "tokens_per_s": rate, "mfu": rate * per_token / 4 / 989e12, "energy_kwh": 2.0, "seconds": 3600}
    (tmp_path / "run.toml").write_text("[data]\nseq_len = 1024\n[parallel]\ndp_shard = 2\ntp = 2\nmicro_batch = 4\n")
    record = lambda **changes: "".join(json.dumps(e) + "\n" for e in ({**start, **changes}, end))  # noqa: E731
    (tmp_path / "run.jsonl").write_text(record())
    found = calibrate(tmp_path)
    assert found.planned_step_s == pytest.approx(step_time(spec, layout, part).total_s)
    assert found.calibrated_step_s == pytest.approx(2 * found.planned_step_s, rel=0.01)
    assert found.constants.matmul_efficiency > part.constants.matmul_efficiency / 2.6
    # a machine that nobody publishes is described by one process's share of the peak and of the power
    (tmp_path / "run.jsonl").write_text(record(device="cpu", mfu_of="the largest matrix product here"))
    own = calibrate(tmp_path).accelerator
    assert own.bf16_tflops == pytest.approx(989)
    assert own.tdp_w == pytest.approx(500)


def test_what_cannot_be_built_is_never_planned():
    """160 layers on 1,000 GPUs: a pipeline of 25 with 7 stages each would have 175."""
    spec = replace(published_model("llama-3.1-70b"), n_layers=160)
    found = search(spec, 1000, machine("h100"), seq_len=8192, global_batch=1024)
    tried = [found.best.layout, *(c.layout for c in found.others)]
    assert all(check(layout, spec) == "" for layout in tried)
    assert all(spec.n_layers >= layout.pp * layout.stages_per_rank for layout in tried)
    assert all(spec.dim % layout.shards == 0 for layout in tried if layout.tp > 1)


def test_gpus_that_divide_badly_stand_by():
    plan = make_plan(resolve(Request(after="llama-3.1-405b")), 100_000, machine("h100"))
    assert plan.workload.gpus == plan.workload.layout.world == 98_304
    assert plan.notes[0].startswith("GPUs: 98,304 of 100,000 train")


def test_every_part_can_be_explained():
    plan = make_plan(resolve(Request(flops=1e24)), 512, machine("h100"))
    for name in NAMES:
        assert all(isinstance(line, str) and line for line in explain(plan, name))
    days = plan.workload.days
    assert f"{days:.4g}" in " ".join(explain(plan, "failures"))


def test_alternatives_are_different_layouts(llama_405b):
    ranks = [c.layout.replace(activation_checkpointing="none") for c in llama_405b.others]
    assert len(set(ranks)) == len(ranks)


def test_buildings_only_cost_where_data_parallel_ranks_meet():
    shape, near = resolve(Request(flops=1e24)), machine("h100")
    layout = Layout(tp=8, pp=2, dp_shard=32, micro_batch=1, global_batch=256, seq_len=8192, zero=1)
    far, further = (replace(near, buildings=2, between_gb_per_s=rate) for rate in (10.0, 0.5))
    one, two, slow = (step_time(shape.spec, layout, part) for part in (near, far, further))
    assert slow.data_parallel_s > two.data_parallel_s
    assert slow.total_s > one.total_s
    assert slow.matmul_s == one.matmul_s and slow.tensor_parallel_s == one.tensor_parallel_s
    with pytest.raises(TenfoldError, match="--between-gb-per-s"):
        make_plan(shape, 512, replace(near, buildings=2))
    with pytest.raises(TenfoldError, match="buildings"):
        make_plan(shape, 8 * 125, replace(near, buildings=3, between_gb_per_s=1.0))
