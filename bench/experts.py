"""The expert layer beside the same active compute dense, and a training step beside transformers' Llama 4.

    python bench/experts.py --rounds 20
    python bench/experts.py --rounds 20 --threads 1 --clock cpu     # on a machine that others use

Both sides of a comparison take turns in one process, so that a disturbance hits both; a row has the median of each
and the quartiles of their ratio. Also: how many bytes routing adds to an expert layer's saved activations and weights.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from results_file import write_results
from torch import Tensor

from tenfold.model.llama import FeedForward
from tenfold.model.llama4 import Llama4
from tenfold.model.moe import Experts
from tenfold.spec.model import ModelSpec
from tenfold.spec.shapes import llama4_shape

CLOCK: Callable[[], float] = time.perf_counter


def take_turns(a: Callable[[], None], b: Callable[[], None], rounds: int) -> tuple[float, float, list[float]]:
    """Median seconds of both, and the quartiles of seconds(b) / seconds(a) of neighbouring turns."""
    for work in (a, b):
        work()
    seconds: list[tuple[float, float]] = []
    for _ in range(rounds):
        began = CLOCK()
        a()
        middle = CLOCK()
        b()
        seconds.append((middle - began, CLOCK() - middle))
    ratios = statistics.quantiles([y / x for x, y in seconds], n=4)
    return statistics.median(x for x, _ in seconds), statistics.median(y for _, y in seconds), ratios


def forward_backward(layer: torch.nn.Module, x: Tensor, direction: Tensor) -> Callable[[], None]:
    def work() -> None:
        layer.zero_grad(set_to_none=True)
        (layer(x) * direction).sum().backward()

    return work


def layer_row(dim: int, tokens: int, rounds: int) -> dict:
    """Forward and backward of one expert layer against a dense feed-forward as wide as shared and routed together."""
    torch.manual_seed(0)
    hidden = round(dim * 4 / 3 / 8) * 8
    spec = ModelSpec(
        "layer", family="llama4", dim=dim, n_layers=1, n_heads=4, n_kv_heads=4, ffn_dim=2 * hidden, vocab_size=8,
        n_experts=16, expert_ffn_dim=hidden,
    )  # fmt: skip
    experts, dense = Experts(spec), FeedForward(dim, 2 * hidden)
    x, direction = torch.randn(tokens, dim, requires_grad=True), torch.randn(tokens, dim)
    expert_s, dense_s, ratios = take_turns(
        forward_backward(experts, x, direction), forward_backward(dense, x, direction), rounds
    )
    load = experts.load.float()
    return {
        "case": "layer",
        "dim": dim,
        "tokens": tokens,
        "experts": 16,
        "busiest_expert_over_mean": (load.max() / load.mean()).item(),
        "expert_tokens_per_s": tokens / expert_s,
        "dense_tokens_per_s": tokens / dense_s,
        "expert_over_dense": ratios[1],
        "expert_over_dense_quartiles": [ratios[0], ratios[2]],
        "bar": 0.75,
    }


def step_row(width: int, rows: int, seq_len: int, rounds: int) -> dict:
    """A whole AdamW step of our Llama 4 and of transformers', with the same shape, batch and fused optimizer."""
    import tempfile
    from pathlib import Path

    from transformers import AutoModelForCausalLM

    from tenfold.model.io.huggingface import write_model

    torch.manual_seed(0)
    spec = llama4_shape(width, 2048)
    ours = Llama4(spec)
    with tempfile.TemporaryDirectory() as directory:
        write_model(ours, Path(directory))
        theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).train()
    tokens = torch.randint(0, 2048, (rows, seq_len))
    descents = [torch.optim.AdamW(m.parameters(), 1e-4, fused=True) for m in (ours, theirs)]
    losses = [0.0, 0.0]

    def our_step() -> None:
        targets = torch.cat((tokens[:, 1:], torch.full((rows, 1), -100)), 1)
        nats, _ = ours.loss(tokens, targets)
        loss = nats / (rows * (seq_len - 1))
        loss.backward()
        descents[0].step()
        descents[0].zero_grad(set_to_none=True)
        losses[0] = loss.item()

    def their_step() -> None:
        loss = theirs(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        descents[1].step()
        descents[1].zero_grad(set_to_none=True)
        losses[1] = loss.item()

    our_s, their_s, ratios = take_turns(our_step, their_step, rounds)
    return {
        "case": "training step",
        "width": width,
        "layers": spec.n_layers,
        "tokens": rows * seq_len,
        "ours_tokens_per_s": rows * seq_len / our_s,
        "transformers_tokens_per_s": rows * seq_len / their_s,
        "ours_over_transformers": ratios[1],
        "ours_over_transformers_quartiles": [ratios[0], ratios[2]],
        "last_loss_ours": losses[0],
        "last_loss_transformers": losses[1],
        "bar": 3.0,
    }


def saved_bytes(layer: torch.nn.Module, x: Tensor) -> int:
    """Bytes of distinct storages that the backward pass of `layer` keeps, without weights and input."""
    own = {p.untyped_storage().data_ptr() for p in layer.parameters()} | {x.untyped_storage().data_ptr()}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = layer(x)
    size = sum(kept.values())
    del out
    return size


def memory_row(dim: int, tokens: int) -> dict:
    """What routing keeps (order, scores, the sorted tokens) beside what weights and the feed-forwards keep anyway."""
    hidden = round(dim * 4 / 3 / 8) * 8
    spec = ModelSpec(
        "layer", family="llama4", dim=dim, n_layers=1, n_heads=4, n_kv_heads=4, ffn_dim=2 * hidden, vocab_size=8,
        n_experts=16, expert_ffn_dim=hidden,
    )  # fmt: skip
    experts, dense = Experts(spec), FeedForward(dim, 2 * hidden)
    x = torch.randn(tokens, dim, requires_grad=True)
    weights = sum(p.nbytes for p in experts.parameters())
    routed, plain = saved_bytes(experts, x), saved_bytes(dense, x)
    return {
        "case": "memory",
        "dim": dim,
        "tokens": tokens,
        "weight_bytes": weights,
        "saved_bytes_dense": plain,
        "saved_bytes_experts": routed,
        "routing_share": (routed - plain) / (weights + plain),
        "bar": 0.10,
    }


def main() -> None:
    global CLOCK
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: the process's own seconds, one thread")
    given = parser.parse_args()
    rounds = given.rounds
    torch.set_num_threads(given.threads)
    if given.clock == "cpu":
        if given.threads != 1:
            raise SystemExit("CPU seconds of several threads are no time: say --threads 1.")
        CLOCK = time.process_time
    cases: list[Callable[[], dict]] = [
        lambda: memory_row(512, 4096),
        *(partial(layer_row, dim, tokens, rounds) for dim, tokens in ((128, 8192), (256, 4096), (512, 4096))),
        lambda: step_row(128, 8, 256, max(3, rounds // 2)),
        lambda: step_row(256, 8, 256, max(3, rounds // 4)),
    ]
    rows = []
    for case in cases:
        rows.append(case() | {"threads": given.threads, "clock": given.clock})
        print(rows[-1], flush=True)
        write_results("experts", rows)


if __name__ == "__main__":
    main()
