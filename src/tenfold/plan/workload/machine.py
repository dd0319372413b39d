"""The constants of accelerators and of training software, from `plan/data/constants.toml`, which gives their sources."""

import re
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

from tenfold.plan.facts import facts
from tenfold.spec.accelerator import Accelerator, accelerator
from tenfold.spec.errors import TenfoldError, nearest

H100_MEASURED_SHARE = 794.5 / 989  # measured bf16 rate over the data sheet's, from accelerators.csv


@dataclass(frozen=True)
class Constants:
    """The constants of an accelerator and its network. Efficiencies are shares of the data sheet's rate, at most 1.

    `units`: processors (SMs) over which the tiles of a matrix product are distributed. `fill_k`: the time to fill a tile's
    pipeline, as the inner dimension of a product that takes as long. `kernel_s`: the shortest time of a kernel on the device.
    Rates of links are per GPU and direction; `domain_gpus` is the number of GPUs joined by the scale-up network.
    """

    units: int
    matmul_efficiency: float
    fill_k: float
    attention_efficiency: float
    memory_efficiency: float
    kernel_s: float
    scaleup_efficiency: float
    scaleup_latency_s: float
    scaleout_gb_per_s: float
    scaleout_efficiency: float
    scaleout_latency_s: float
    domain_gpus: int


@dataclass(frozen=True)
class Stack:
    """The behaviour of training software, on any accelerator.

    `own_trainer` is Tenfold's trainer. It computes the loss in chunks of tokens. Embedding, head and shared experts are whole on
    each tensor parallel rank, and both tables stay gathered during the step. The inputs of tensor parallel products are kept as
    gathered. In a pipeline, all weights stay gathered and their gradients whole during the step.
    """

    name: str = ""
    fused_attention: bool = True  # no score matrix in memory
    sequence_parallel: bool = True  # tensor parallel ranks also share norms and residuals
    pointwise: float = 1.0  # bytes moved by element-wise kernels, relative to one kernel per operation
    attention: float = 1.0  # rate of the attention kernel, relative to the best known on the accelerator
    grouped: float = 0.8  # rate of the experts' grouped products, relative to the best known on the accelerator
    fp4: float = 0.64  # efficiency of products in 4 bits, relative to that of others
    products_again: float = 0.0  # share of the matrix products that selective recomputation repeats
    imbalance: float = 0.15  # relative standard deviation of the tokens of an expert
    dispatch_s: float = 6e-6  # host time per kernel
    gap_s: float = 0.0  # time between two kernels in which the device waits, however fast the host is
    skew_s: float = 0.0  # standard deviation of the times at which tensor parallel ranks reach a collective
    hidden_tp: float = 0.0  # hidden_*: share of the communication that is hidden behind compute, where there is enough compute
    hidden_ep: float = 0.0
    hidden_dp: float = 0.9
    hidden_pp: float = 0.5
    gradient_bytes: float = 4.0  # bytes per gradient that is reduced
    weight_bytes: float = 2.0  # bytes per weight in a rank's shard; 4 where the shard is also the optimizer's copy
    kept_by_experts: float = 1.0  # inputs that full recomputation keeps of a layer with experts
    own_trainer: bool = False
    optimizer_bytes: float = 40.0  # bytes moved per parameter in the optimizer's step
    step_s: float = 5e-3  # host work per step
    straggler: float = 0.005  # share of the step lost with each doubling of the GPUs beyond a scale-up domain
    score_bytes: float = 12.0  # per logit; 12: in 16 bits, a copy in 32 bits, and the gradients of both
    weight_copies: float = 0.0  # bytes per weight kept in addition for products in 8 bits; in 4 bits proportionally less
    gated: bool = True  # Llama's feed-forward of three matrices; otherwise GPT's of two (its shape: a gated one of as many weights)
    offloads: bool = False  # what full recomputation keeps is moved to the host's memory
    graph_gib: float = 0.0  # memory pools of captured graphs
    # The meaning of empty cells in a table of measurements:
    interleaves: bool = False  # a pipeline has virtual stages of one layer each; otherwise one stage per rank
    accumulates: bool = True  # the fastest micro-batch (Megatron has no default); otherwise all sequences of a rank at once
    recompute: str = ""  # the activation checkpointing; empty: as little as fits


@dataclass(frozen=True)
class Machine:
    """An accelerator, its constants, and the training software.

    The GPUs are spread evenly over `buildings`; only data parallel ranks communicate between them, at `between_gb_per_s` per GPU
    and direction.
    """

    accelerator: Accelerator
    constants: Constants
    stack: Stack
    source: str = ""
    buildings: int = 1
    between_gb_per_s: float = 0.0

    def matmul_flops(self, dtype: str) -> float:
        """FLOP/s of a large matrix product in `dtype`. Raises TenfoldError where the accelerator has no rate for it."""
        share = self.constants.matmul_efficiency * (self.stack.fp4 if dtype == "fp4" else 1.0)
        return self.accelerator.peak_flops(dtype) * share

    @property
    def memory_bytes_per_s(self) -> float:
        return self.accelerator.memory_gb_per_s * 1e9 * self.constants.memory_efficiency

    @property
    def scaleup_bytes_per_s(self) -> float:
        return (self.accelerator.scaleup_gb_per_s or self.constants.scaleout_gb_per_s) * 1e9 * self.constants.scaleup_efficiency

    @property
    def scaleout_bytes_per_s(self) -> float:
        return self.constants.scaleout_gb_per_s * 1e9 * self.constants.scaleout_efficiency


@cache
def stacks() -> dict[str, Stack]:
    """Training software by name and version. A table with `as` inherits the values of the table that it names."""
    tables = facts("constants")["stacks"]

    def whole(name: str) -> dict[str, Any]:
        row = tables[name]
        return {**(whole(row["as"]) if "as" in row else {}), **row, "name": name}

    return {name: Stack(**{k: v for k, v in whole(name).items() if k not in ("source", "as")}) for name in tables}


def stack(name: str) -> Stack:
    """The software `NAME-VERSION`: that version, or the newest known before it, or the oldest known.

    Raises TenfoldError, with the nearest name, for unknown software.
    """
    known, (software, version) = stacks(), _version(name)
    if name in known:
        return known[name]
    versions = sorted((_version(k)[1], k) for k in known if _version(k)[0] == software and _version(k)[1])
    if not versions:
        raise TenfoldError(f"There is no software stack {name!r}{nearest(name, known)}: name one of {', '.join(known)}.")
    before = [k for v, k in versions if not version or v <= version]
    return known[before[-1] if before else versions[0][1]]


def _version(name: str) -> tuple[str, tuple[int, ...]]:
    """The name and the version of a stack: ("megatron-bridge", (26, 2)) of `megatron-bridge-26.02`; () without a version."""
    software, _, version = name.lower().rpartition("-")
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)*", version):
        return name.lower(), ()
    return software, tuple(map(int, version.split(".")))


def machine(name: str, stack_name: str = "tenfold", **changes: Any) -> Machine:
    """A machine by the key of its accelerator and the name of its software.

    `changes` replace constants or fields of the accelerator; `limit_w` is a power limit, which also lowers the rate of matrix
    products. An accelerator without constants of its own has those of the table `any`. Raises TenfoldError for unknown names.
    """
    sheet = {f.name for f in fields(Accelerator)}
    part = replace(accelerator(name), **{k: v for k, v in changes.items() if k in sheet})
    part = replace(part, guessed=tuple(figure for figure in part.guessed if figure not in changes))
    own = facts("constants")["accelerators"].get(part.key, {})
    merged = {**facts("constants")["accelerators"]["any"], **own, **changes}
    names = {f.name for f in fields(Constants)}
    constants = Constants(**{k: v for k, v in merged.items() if k in names})
    share = constants.matmul_efficiency
    if "matmul_efficiency" not in {**own, **changes} and part.measured_bf16_tflops:
        share *= part.measured_bf16_tflops / part.bf16_tflops / H100_MEASURED_SHARE
    if "limit_w" in changes and part.tdp_w:
        share *= (changes["limit_w"] / part.tdp_w) ** (1 / 3)  # dynamic power is proportional to the cube of the clock
    constants = replace(constants, matmul_efficiency=min(1.0, share))
    return Machine(part, constants, stack(stack_name), str(merged.get("source", "")))
