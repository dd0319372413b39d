"""The GPU's kernels without a GPU: what they compute, under Triton's interpreter, and what a Hopper GPU would be given.

Each check runs in a process of its own, since Triton asks at its import whether to interpret. `make nightly` installs Triton.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from test_serve_cuda import SPEC, make_model

from tenfold.model.llama import Llama
from tenfold.serve.runners.cuda import CudaRunner
from tenfold.serve.runners.runner import ModelInput
from tenfold.spec.model import published_model

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")]


def check(name, **environment):
    command = [sys.executable, "-c", f"from test_serve_kernels import {name}; {name}()"]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stderr[-600:]


def test_kernels_compute_what_the_plain_operations_compute():
    check("check_values", TRITON_INTERPRET="1")


def test_kernels_compile_for_hopper():
    """Wide loads for the products of one row, tensor cores for attention, no registers spilled by the best choice."""
    check("check_compiled")


def check_values():
    from triton.runtime import interpreter

    from tenfold.serve.runners import kernels, paged

    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):  # numpy 2.4 no longer turns an array of one element into an integer
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched
    torch.manual_seed(0)
    device = torch.device("cpu")
    near = {"rtol": 1e-4, "atol": 1e-4}
    spec, runner = SPEC, CudaRunner(make_model(), 20, max_rows=4)
    keys, values = torch.randn(2, 20, 2, 16, 16)
    for rows in (
        ModelInput([5, 6, 7], [99, 0, 40], [1, 1, 1], [[3, 5, 7, 9, 11, 13, 15], [2], [1, 4, 6]]),
        ModelInput([*range(30)], [*range(20, 40), *range(9), 50], [20, 9, 1], [[3, 5, 7], [2], [1, 4, 6, 8]]),
    ):
        batch, _, _ = runner._batch(rows, [])
        q, qkv, n = torch.randn(len(rows.tokens), 6, 16), torch.randn(len(rows.tokens), 2, 5, 16), len(rows.tokens)
        for batch.splits in (1, 4):
            torch.testing.assert_close(kernels.attention(q, keys, values, batch), paged.attention(q, keys, values, batch), **near)
        ours, theirs = (keys.clone(), values.clone()), (keys.clone(), values.clone())
        torch.testing.assert_close(
            kernels.turn_and_store(qkv, runner.rope, batch, *ours), paged.turn_and_store(qkv, runner.rope, batch, *theirs), **near
        )
        torch.testing.assert_close(ours, theirs, **near)
        batch.tokens[1] = -3
        drawn = torch.tensor([1, 2, 3], dtype=torch.int32)
        assert torch.equal(kernels.embed(batch, drawn, runner.embedding), paged.embed(batch, drawn, runner.embedding))
        x, added = torch.randn(2, n, spec.dim)
        weight = torch.randn(spec.dim)
        for more in (None, added):
            torch.testing.assert_close(kernels.norm(x, weight, 1e-5, more), paged.norm(x, weight, 1e-5, more), **near)
        h = torch.randn(n, 2 * 1100)
        torch.testing.assert_close(kernels.gate(h), paged.gate(h), **near)
    # Padding neither writes nor yields anything that is not a number.
    batch, _, _ = runner._views(torch.from_numpy(runner._pack(ModelInput([5], [17], [1], [[3, 5]]), [], 4, None)), 4, 4, 1)
    ours = keys.clone(), values.clone()
    kernels.turn_and_store(torch.randn(4, 2, 5, 16), runner.rope, batch, *ours)
    assert int((ours[0] != keys).any(-1).sum()) == 2  # one token of two heads
    assert kernels.attention(torch.randn(4, 6, 16), *ours, batch)[1:].abs().max() == 0
    # A whole step of one row.
    fused = CudaRunner(make_model(), 20, max_rows=4)
    fused.ops, fused.fused = kernels, True
    fused.cache.normal_()
    runner.cache.copy_(fused.cache)
    for token, position in ((5, 37), (-1, 38)):
        rows = ModelInput([token], [position], [1], [[3, 5, 7]])
        found = [r.logits(r.hidden(rows)) for r in (fused, runner)]
        torch.testing.assert_close(*found, **near)
    torch.testing.assert_close(fused.cache, runner.cache, **near)
    # Draws: the likeliest, or the frequencies of the softmax, the same for the same seed and position.
    logits = torch.randn(3, 9000)
    zeros = torch.zeros(3, dtype=torch.int32, device=device)
    assert torch.equal(kernels.draw(logits, zeros, zeros, torch.zeros(3)).long(), logits.argmax(-1))
    few = torch.tensor([0.0, 1.0, 2.0, 3.0]).repeat(600, 1)
    seeds = torch.arange(600, dtype=torch.int32)
    for temperature in (1.0, 0.5):
        drawn = kernels.draw(few, seeds % 50, seeds // 50, torch.full((600,), temperature))
        share = torch.bincount(drawn.long(), minlength=4) / 600
        assert float((share - (few[0] / temperature).softmax(-1)).abs().max()) < 0.08
        assert torch.equal(drawn, kernels.draw(few, seeds % 50, seeds // 50, torch.full((600,), temperature)))


def check_compiled():
    compiled = compile_for_hopper()
    spills = defaultdict(list)
    for (name, early), kernels in compiled.items():
        for assembly, frame in kernels:
            spills[name, early].append(frame)
            if name.endswith("_one"):
                assert "LDG.E.128" in assembly, name
            if name == "_attention":
                assert "HGMMA" in assembly or "HMMA" in assembly, name
            if name.endswith("_one") or name in ("_attention", "_join"):
                assert ("ACQBULK" in assembly) == early, f"{name} waits for the launch before where it should not, or does not"
    assert {"_product_one", "_gate_one", "_qkv_one", "_attention", "_join", "_embed", "_norm", "_draw"} <= {n for n, _ in spills}
    for name, frames in spills.items():
        assert min(frames) == 0, f"{name} spills registers whatever its configuration: {frames} bytes"


def compile_for_hopper():
    """Assembly and bytes of stack of every kernel of a Llama-3.2-1B in bfloat16, by name and programmatic launches."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime import JITFunction, driver
    from triton.runtime.autotuner import Autotuner

    from tenfold.serve.runners import kernels

    class NoGpu:
        def get_current_target(self):
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self):
            return 0

        def get_current_stream(self, device=None):
            return 0

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    found, run = {}, JITFunction.run

    def compile_only(self, *args, grid, warmup, **named):
        made = run(self, *args, grid=grid, warmup=True, **named)
        found[made.hash] = (self.fn.__name__, kernels.pdl, made.asm["cubin"])
        return made

    def compile_all(self, *args, warmup=False, **named):
        return self.warmup(*args, **named)

    driver.set_active(NoGpu())
    JITFunction.run, Autotuner.run = compile_only, compile_all
    spec = replace(published_model("llama-3.2-1b"), n_layers=1, vocab_size=8192)
    torch.set_default_dtype(torch.bfloat16)
    model = Llama(spec).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    runner = CudaRunner(model, 64, 8, 512)
    runner.ops, runner.fused = kernels, True
    for early in (False, True):
        kernels.pdl = early
        for rows in (
            ModelInput([5], [99], [1], [list(range(7))]),
            ModelInput([5, 6, 7], [99, 0, 40], [1, 1, 1], [list(range(7)), [9], [10, 11, 12]]),
            ModelInput([*range(30)], [*range(20, 40), *range(9), 50], [20, 9, 1], [[3, 5, 7], [2], [1, 4, 6, 8]]),
        ):
            logits = runner.logits(runner.hidden(rows))
            zeros = torch.zeros(len(logits), dtype=torch.int32)
            kernels.draw(logits, zeros, zeros, torch.ones(len(logits)))
    assemblies = defaultdict(list)
    for name, early, cubin in found.values():
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            Path(file.name).write_bytes(cubin)
            assembly = subprocess.run([tools / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True).stdout
            used = subprocess.run(
                [tools / "cuobjdump", "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
            ).stdout
        assemblies[name, early].append((assembly, int(re.search(r"STACK:(\d+)", used)[1])))
    return assemblies
