"""Speed of the expert layer compared with a dense layer of equal active compute, and of a training step with transformers' Llama 4.

    python -m bench.train.experts --rounds 20

Both sides of a comparison alternate in one process, so that other load affects both. A row has the ratio of the medians and the
quartiles of the rounds' ratios. It also measures how many bytes routing adds to an expert layer's weights and saved activations.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.harness import Headline, Row, alternate, options, ratio, write_results
from bench.train.sides import Job, Side
from tenfold.model.llama import FeedForward
from tenfold.model.moe import Experts
from tenfold.spec.model import ModelSpec


def timed(work: Callable[[], object]) -> Callable[[], float]:
    def seconds() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return seconds


def compare(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[float, list[float], list[float]]:
    """(how many times as fast `ours` is, the quartiles of that over rounds, the median seconds of both)."""
    found = alternate({"ours": timed(ours), "theirs": timed(theirs)}, rounds)
    low, _, high = statistics.quantiles([b / a for a, b in zip(found["ours"], found["theirs"], strict=True)], n=4)
    return ratio(found["theirs"], found["ours"]), [low, high], [statistics.median(s) for s in found.values()]


def layers(dim: int) -> tuple[Experts, FeedForward]:
    """A layer of 16 experts, and a dense feed-forward as wide as the shared and a routed expert together."""
    torch.manual_seed(0)
    hidden = round(dim * 4 / 3 / 8) * 8
    spec = ModelSpec(
        "layer", family="llama4", dim=dim, n_layers=1, n_heads=4, n_kv_heads=4, ffn_dim=2 * hidden, vocab_size=8,
        n_experts=16, expert_ffn_dim=hidden,
    )  # fmt: skip
    return Experts(spec), FeedForward(dim, 2 * hidden)


def layer_row(dim: int, tokens: int, rounds: int) -> Row:
    """Forward and backward of both layers."""
    experts, dense = layers(dim)
    x, direction = torch.randn(tokens, dim, requires_grad=True), torch.randn(tokens, dim)

    def forward_backward(layer: torch.nn.Module) -> None:
        layer.zero_grad(set_to_none=True)
        (layer(x) * direction).sum().backward()

    faster, quartiles, (expert_s, dense_s) = compare(partial(forward_backward, experts), partial(forward_backward, dense), rounds)
    load = experts.load.float()
    return {
        "case": "layer",
        "dim": dim,
        "tokens": tokens,
        "experts": 16,
        "busiest_expert_over_mean": (load.max() / load.mean()).item(),
        "expert_tokens_per_s": tokens / expert_s,
        "dense_tokens_per_s": tokens / dense_s,
        "expert_over_dense": faster,
        "expert_over_dense_quartiles": quartiles,
        "bar": 0.75,
    }


def step_row(width: int, rounds: int) -> Row:
    """A whole AdamW step of our Llama 4 and of transformers', with the same shape and batch."""
    job = {"device": "cpu", "case": f"experts {width}", "batch": 8, "seq_len": 256, "compiled": False}
    ours, theirs = (Side(Job(system=system, **job)) for system in ("tenfold", "transformers"))
    faster, quartiles, (our_s, their_s) = compare(ours.step, theirs.step, rounds)
    tokens = ours.rows.tokens
    return {
        "case": "training step",
        "width": width,
        "layers": ours.spec.n_layers,
        "tokens": tokens,
        "ours_tokens_per_s": tokens / our_s,
        "transformers_tokens_per_s": tokens / their_s,
        "ours_over_transformers": faster,
        "ours_over_transformers_quartiles": quartiles,
        "last_loss_ours": ours.loss(),
        "last_loss_transformers": theirs.loss(),
        "bar": 3.0,
    }


def saved_bytes(layer: torch.nn.Module, x: Tensor) -> int:
    """Bytes of the distinct storages that `layer` saves for its backward pass, without weights and input."""
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


def memory_row(dim: int, tokens: int) -> Row:
    """Memory that routing adds (order, scores, sorted tokens), as a share of weights and a dense layer's saved activations."""
    experts, dense = layers(dim)
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


def headline(rows: list[Row]) -> Headline:
    for case, what, size, over, digits in (
        ("layer", "expert layer, tokens/s beside the same active compute dense", "dim", "expert_over_dense", 2),
        ("training step", "training step beside `transformers`' Llama 4", "width", "ours_over_transformers", 1),
    ):
        shown = [(r[size], r[over], *r[f"{over}_quartiles"]) for r in rows if r["case"] == case]
        if shown:
            widths = ", ".join(str(width) for width, *_ in shown)
            figures = "; ".join(f"{v:.{digits}f}x ({low:.{digits}f} to {high:.{digits}f})" for _, v, low, high in shown)
            yield f"{what}, widths {widths}", figures
    for r in rows:
        if r["case"] == "memory":
            yield "memory of routing beside expert weights and activations", f"{r['routing_share']:.1%}"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    cases: list[Callable[[], Row]] = [
        partial(memory_row, 512, 4096),
        *(partial(layer_row, dim, tokens, given.rounds) for dim, tokens in ((128, 8192), (256, 4096), (512, 4096))),
        partial(step_row, 128, max(3, given.rounds // 2)),
        partial(step_row, 256, max(3, given.rounds // 4)),
    ]
    rows: list[Row] = []
    for case in cases:
        rows.append(case() | {"threads": given.threads})
        print(rows[-1], flush=True)
        write_results("experts", rows, headline(rows))


if __name__ == "__main__":
    main()
