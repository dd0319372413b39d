"""Check the fast paths of a run on a GPU against the same functions in float64 or float32, on fresh random inputs.

    PYTHONPATH=src python -m bench.gpu.check                  # needs only PyTorch; exits with 1 if a check fails
    PYTHONPATH=src python -m bench.gpu.check --device cpu     # the checks that a CPU can do

An error is the norm of the difference over the norm of the reference, the largest over values and gradients.
"""

import copy
import json
import sys
from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor

from bench.harness import options
from bench.train.sides import Job, Side
from tenfold.model.attention import attend, document_blocks, document_mask, fastest_attention
from tenfold.model.llama import Llama
from tenfold.model.loss import cross_entropy
from tenfold.spec.model import ModelSpec
from tenfold.train.activation_checkpointing import ActivationCheckpointing, checkpoint_activations
from tenfold.train.compile import compile_blocks, use_document_blocks

HALF = 1.5e-2  # largest error with bfloat16 operands


def error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest relative difference; infinity if one is NaN."""
    worst = [((f.double() - w.double()).norm() / w.double().norm()).item() for f, w in zip(found, wanted, strict=True)]
    return max(worst) if all(value == value for value in worst) else float("inf")


def with_gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    out = function(*leaves)
    weight = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=out.dtype).view_as(out)
    (out * weight).sum().backward()
    return [out.detach(), *(t.grad for t in leaves if t.grad is not None)]


def documents(rows: int, length: int, device: torch.device) -> Tensor:
    return (torch.rand(rows, length, device=device) < 1 / 100).cumsum(1).int()


def check_attention(device: torch.device, head_dim: int, in_documents: bool) -> float:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    q, k, v = (torch.randn(2, heads, 1024, head_dim, device=device).to(dtype) for heads in (8, 2, 2))
    document = documents(2, 1024, device)
    mask, blocks = (document_mask(document), document_blocks(document)) if in_documents else (None, None)
    with fastest_attention(device):
        found = with_gradients(lambda *t: attend(*t, blocks), [q, k, v])
    return error(found, with_gradients(lambda *t: attend(*t, mask), [t.double() for t in (q, k, v)]))


def check_loss(device: torch.device) -> float:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    hidden, weight = torch.randn(3000, 256, device=device).to(dtype), (torch.randn(5000, 256, device=device) / 16).to(dtype)
    targets = torch.randint(0, 5000, (3000,), device=device)
    targets[::7] = -100

    def ours(h: Tensor, w: Tensor) -> Tensor:
        return sum(cross_entropy(h, w, targets, 1e-3), torch.zeros((), device=device))

    def plain(h: Tensor, w: Tensor) -> Tensor:
        logits = h @ w.T
        nats = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
        return nats + 1e-3 * (logits.logsumexp(-1).square() * (targets >= 0)).sum()

    def scaled(function: Callable) -> Callable:
        return lambda h, w: function(h, w).view(1) / 3000

    found = with_gradients(scaled(ours), [hidden, weight])
    return error(found, with_gradients(scaled(plain), [hidden.double(), weight.double()]))


def check_model(device: torch.device, what: ActivationCheckpointing) -> float:
    """A model compiled block by block under autocast, with documents and activation checkpointing, against plain float32."""
    spec = ModelSpec("check", dim=256, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=704, vocab_size=1000)
    with device:
        plain = Llama(spec)
        tokens = torch.randint(0, 1000, (2, 513))
    fast = copy.deepcopy(plain)
    use_document_blocks(fast, 512)
    checkpoint_activations(fast, what)
    compile_blocks(fast, **({} if device.type == "cuda" else {"backend": "eager"}))
    document = documents(2, 512, device)
    results = []
    for model, half in ((fast, device.type == "cuda"), (plain, False)):
        with fastest_attention(device):
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                nats = model.loss(tokens[:, :-1], tokens[:, 1:], document)[0] / 1024
            nats.backward()
        results.append([nats.detach(), *(p.grad for p in model.parameters())])
    return error(*results)


def check_waiting(device: torch.device) -> float:
    """Raises if the host waits for the GPU during a step."""
    side = Side(Job(device=device.type, case="tiny", batch=2, seq_len=256))
    side.step(), side.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        side.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return 0.0


def checks(device: torch.device) -> dict[str, tuple[Callable[[], float], float]]:
    """Each check by name, with the largest error that it may have."""
    allowed = HALF if device.type == "cuda" else 1e-4
    found: dict[str, tuple[Callable[[], float], float]] = {}
    for head_dim in (64, 128):
        for inside in (False, True):
            name = f"attention, head {head_dim}, {'documents' if inside else 'causal'}"
            found[name] = (lambda d=head_dim, i=inside: check_attention(device, d, i)), allowed
    found["loss"] = (lambda: check_loss(device)), allowed
    for what in get_args(ActivationCheckpointing):
        # Gradients pass through two layers of rounding.
        found[f"model, activation checkpointing {what}"] = (lambda w=what: check_model(device, w)), 4 * allowed
    if device.type == "cuda":
        found["a step without waiting"] = (lambda: check_waiting(device)), 0.0
    return found


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--device", default="cuda")
    device = torch.device(parser.parse_args().device)
    torch.manual_seed(torch.seed() % 2**31)
    failed = 0
    for name, (check, allowed) in checks(device).items():
        try:
            value = check()
            said = f"error {value:.2e}, allowed {allowed:.0e}"
        except Exception as problem:  # the other checks are still worth having
            value, said = float("inf"), f"{type(problem).__name__}: {str(problem).splitlines()[0][:200]}"
        failed += value > allowed
        print(json.dumps({"check": name, "passed": value <= allowed, "said": said}), flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
