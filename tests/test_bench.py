"""The benchmarks: what their harness computes, and the GPU's scripts on a CPU."""

import ast
import json
import os
import random
import subprocess
import sys

import pytest
import torch

from bench.gpu import check, step_account, train
from bench.harness import ROOT, alternate, change_pct, ratio, ratio_interval
from bench.train import sides


def test_benchmarks_give_a_headline_and_not_a_command_after_their_rows():
    wrong = []
    for file in sorted((ROOT / "bench").rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text())):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "write_results" and len(call.args) > 2:
                wrong += [file.name] if isinstance(call.args[2], ast.Constant | ast.JoinedStr | ast.BinOp) else []
    assert not wrong


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_script_runs_on_a_cpu_and_a_side_that_fails_is_a_row(tmp_path):
    command = [sys.executable, "-m", "bench.gpu.train", "--device", "cpu", "--tiny", "--seconds-a-side", "300"]
    environment = os.environ | {"TENFOLD_BENCH_RESULTS": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    rows = {(r["case"], r["system"]): r for r in json.loads((tmp_path / "gpu_train.json").read_text())["rows"]}
    ours, theirs = rows["1B, 4 x 8192", "tenfold"], rows["1B, 4 x 8192", "transformers compiled"]
    for r in (ours, theirs):
        assert set(train.COLUMNS) <= set(r) and r["step_s_least"] <= r["step_s"] <= r["step_s_most"]
        assert r["tflops"] == pytest.approx(sides.step_flops(sides.shape("tiny"), [[256]] * 2) / r["step_s"] / 1e12)
    assert ours["vs_transformers"] == pytest.approx(ours["tokens_per_s"] / theirs["tokens_per_s"])
    assert ours["parameters"] == theirs["parameters"]
    # Random tokens: a loss near that of guessing for both, or they do not do the same.
    assert 0.9 < ours["first_loss"] / theirs["first_loss"] < 1.1 and ours["last_loss"] < ours["first_loss"]
    assert rows["1B, documents of 1000 in 8192", "tenfold"]["vs_plain"] > 0
    assert "fp8 does nothing here" in rows["8B's width, 8 layers, fp8", "tenfold, fp8 by tensorwise"]["reason"]
    assert rows["1B, largest batch of 8192", "tenfold, activation checkpointing selective"]["batch"] == 3
    assert "| tenfold |" in done.stdout


def test_a_side_that_takes_too_long_or_breaks_has_a_reason(tmp_path):
    assert train.run_side({"device": "cpu", "case": "tiny"}, 0.01, str(tmp_path)) == {"reason": "took more than 0 s"}
    assert train.row("case", "system", [{"reason": "no"}])["reason"] == "no"
    assert train.row("case", "system", [])["reason"] == "not reached in the time given"


def test_flops_with_documents_are_those_of_what_is_attended():
    spec = sides.shape("tiny")
    row = sides.document_lengths(8192, 1000, random.Random(0))
    assert sum(row) == 8192 and min(row) >= 1
    attended = sum(length * (length + 1) / 2 for length in row)  # pairs of a query and a key
    products = 6 * (spec.parameters().matrix_active) * 8192
    attention = 3 * 4 * spec.n_layers * spec.n_heads * spec.head_dim * attended
    assert sides.step_flops(spec, [row]) == pytest.approx(products + attention)


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_hsh_256x128_64x4_1x2_h_bz_coopA_NTN", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "matrix products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_7_64x128x64_4x1x1_kernel0_0", "attention"),
        ("pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4>>", "attention"),
        ("triton_tem_fused_flex_attention_backward_transpose_view_7", "attention"),
        ("at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4>>", "optimizer"),
        ("triton_red_fused__fused_rms_norm_add_3", "bound by memory"),
        ("Memcpy DtoD (Device -> Device)", "bound by memory"),
        ("aten::mm", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::_fused_adamw_", "optimizer"),
        ("aten::silu", "bound by memory"),
    ],
)
def test_kernels_are_told_apart_by_name(kernel, kind):
    assert step_account.kind_of(kernel) == kind


def test_the_account_adds_up_and_is_drawn(tmp_path):
    side = sides.Side(sides.Job(device="cpu", case="tiny", batch=2, seq_len=128, compiled=False))
    rows = step_account.account(side, 2, 1e11, 1e10)
    parts, step = rows[:-1], rows[-1]
    assert [r["part"] for r in parts] == ["matrix products", "attention", "bound by memory", "optimizer", "idle"]
    assert all(r["seconds"] > 0 for r in parts[:4]) and all(r["floor_s"] > 0 for r in parts[:4])
    assert sum(r["floor_s"] for r in parts) == pytest.approx(step["floor_s"])
    flops = sides.step_flops(side.spec, side.rows.lengths)
    assert (parts[0]["floor_s"] + parts[1]["floor_s"]) * 1e11 == pytest.approx(flops)
    step_account.draw(rows, "a step", tmp_path / "step.png")
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_checked_on_a_gpu_holds_on_a_cpu_as_far_as_it_goes_there():
    torch.manual_seed(0)
    for name, (error_of, allowed) in check.checks(torch.device("cpu")).items():
        assert error_of() <= allowed, name


def test_a_wrong_or_missing_number_never_passes():
    good = torch.ones(3)
    assert check.error([good], [good]) == 0
    assert check.error([good, good * 1.5], [good, good]) == pytest.approx(0.5)
    assert check.error([good * float("nan")], [good]) == float("inf")


def test_sides_take_turns_and_warming_up_does_not_count():
    order = []
    sides = {name: lambda name=name: order.append(name) or len(order) for name in "ab"}
    assert alternate(sides, rounds=2) == {"a": [3, 5], "b": [4, 6]} and order == list("ababab")
    assert ratio([4.0, 2.0, 100.0], [2.0, 1.0, 3.0]) == 2.0


def test_the_interval_of_a_ratio_of_medians_follows_what_differs_and_not_what_both_share():
    draw = random.Random(0)
    busy = [draw.uniform(1, 3) for _ in range(9)]  # how slow the machine is in each round
    assert ratio_interval([2 * s for s in busy], busy) == pytest.approx([2, 2])
    low, high = ratio_interval([2 * s * draw.uniform(0.9, 1.1) for s in busy], busy)
    assert 1.5 < low < 2 < high < 2.5


def test_the_interval_of_a_mean_ratio_is_students():
    change, (low, high) = change_pct([1.0, 1.1])
    assert change == pytest.approx(100 * (1.1**0.5 - 1))
    # two values: t of 97.5 % with one degree of freedom is 12.706, the standard error half of their difference
    assert (1 + high / 100) / (1 + low / 100) == pytest.approx(1.1**12.706, rel=1e-3)
    assert change_pct([1.1]) == (pytest.approx(10), None)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_commands_that_are_struck_lose_nothing_and_leave_nothing(tmp_path):
    command = [sys.executable, "-m", "bench.train.interruptions", "--moments", "40", "--seed", "2"]
    environment = os.environ | {"TENFOLD_BENCH_RESULTS": str(tmp_path)}
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    rows = json.loads((tmp_path / "interruptions.json").read_text())["rows"]
    assert sum(row["moments"] for row in rows) == 40 and not any(row["wrong"] for row in rows)
