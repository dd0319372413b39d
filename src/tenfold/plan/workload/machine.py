"""The constants of machines and of training software, from `plan/data/constants.toml`: each with its source there."""

import re
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

from tenfold.plan.facts import facts
from tenfold.spec.accelerator import Accelerator, accelerator
from tenfold.spec.errors import TenfoldError, nearest

H100_MEASURED_SHARE = 794.5 / 989  # of the data sheet's rate, accelerators.csv


@dataclass(frozen=True)
class Constants:
    """At most twelve per accelerator. Efficiencies are shares of the data sheet's rate, at most 1.

    `units`: processors that a matrix product's tiles are dealt to. `fill_k`: the depth of a product whose time the
    filling of a tile's pipeline costs. `kernel_s`: the least time of a kernel on the device. Rates of links are per GPU
    and direction; `domain_gpus` is how many GPUs the scale-up network joins.
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
    """What the training software does, whatever the accelerator.

    `fused_attention`: no score matrix in memory. `sequence_parallel`: tensor parallel ranks also share norms and residuals.
    `pointwise`: bytes moved by element-wise kernels, relative to one kernel per operation. `attention` and `grouped`: rate of
    its attention kernel and of its products over many experts, relative to the best known on the accelerator. `fp4`: share of
    the data sheet's rate that products in 4 bits reach, relative to others' share. `products_again`: share of the matrix
    products that selective recompute works out again. `imbalance`: relative spread of the tokens of an expert. `dispatch_s`:
    host time per kernel. `gap_s`: time between two kernels in which the device waits all the same. `skew_s`: spread of the
    times at which tensor parallel ranks come to a collective. `hidden_*`: share of a collective that runs behind compute where
    there is enough of it. `gradient_bytes`: bytes per gradient that is reduced. `weight_bytes`: bytes of a weight in a rank's
    share, 4 where that is the optimizer's own copy. `kept_by_experts`: inputs that full recompute keeps of a layer of experts.
    `own_trainer`: Tenfold's, which takes scores in chunks; has embedding, head and shared experts whole on every tensor
    parallel rank, and the tables gathered through the step; keeps the inputs of tensor parallel products as they were gathered;
    and in a pipeline keeps all weights gathered, and their gradients whole, through the step. `step_s`: host work per step.
    `straggler`: share of the step lost each time the number of GPUs doubles beyond a node. `score_bytes`: of a score of the
    vocabulary (12: in 16 bits, its copy in 32, and the gradients of both). `weight_copies`: bytes of a weight that are kept
    beside it for products in 8 bits, less in 4. `gated`: feed-forwards are Llama's, of three matrices; otherwise GPT's of two,
    which a shape gives as a gated one of as many weights. `offloads`: what full recompute keeps waits in the host's memory.
    `graph_gib`: what the pools of captured graphs hold. What a table's empty cells mean: `interleaves`: a pipeline has virtual
    stages of one layer, not one stage a rank; `accumulates`: as many rows as are fastest go through the model together
    (Megatron has no default), not all rows of a rank; `recompute`: the activation checkpointing, where it is not as little as
    fits.
    """

    name: str = ""
    fused_attention: bool = True
    sequence_parallel: bool = True
    pointwise: float = 1.0
    attention: float = 1.0
    grouped: float = 0.8
    fp4: float = 0.64
    products_again: float = 0.0
    imbalance: float = 0.15
    dispatch_s: float = 6e-6
    gap_s: float = 0.0
    skew_s: float = 0.0
    hidden_tp: float = 0.0
    hidden_ep: float = 0.0
    hidden_dp: float = 0.9
    hidden_pp: float = 0.5
    gradient_bytes: float = 4.0
    weight_bytes: float = 2.0
    kept_by_experts: float = 1.0
    own_trainer: bool = False
    optimizer_bytes: float = 40.0
    step_s: float = 5e-3
    straggler: float = 0.005
    score_bytes: float = 12.0
    weight_copies: float = 0.0
    gated: bool = True
    offloads: bool = False
    graph_gib: float = 0.0
    interleaves: bool = False
    accumulates: bool = True
    recompute: str = ""


@dataclass(frozen=True)
class Machine:
    """An accelerator, its constants, and the software that drives it.

    `buildings` share the GPUs evenly; only data parallel ranks meet across them, at `between_gb_per_s` per GPU and direction.
    """

    accelerator: Accelerator
    constants: Constants
    stack: Stack
    source: str = ""
    buildings: int = 1
    between_gb_per_s: float = 0.0

    def matmul_flops(self, dtype: str) -> float:
        """FLOP/s of a large matrix product."""
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
    """Training software by name and version; a table with `as` has what another one has, but for what it says itself."""
    tables = facts("constants")["stacks"]

    def whole(name: str) -> dict[str, Any]:
        row = tables[name]
        return {**(whole(row["as"]) if "as" in row else {}), **row, "name": name}

    return {name: Stack(**{k: v for k, v in whole(name).items() if k not in ("source", "as")}) for name in tables}


def stack(name: str) -> Stack:
    """The software `NAME-VERSION`: that version, or the newest known before it, or the first. Raises TenfoldError with the
    nearest name where the software is unknown."""
    known, (software, version) = stacks(), _version(name)
    if name in known:
        return known[name]
    versions = sorted((_version(k)[1], k) for k in known if _version(k)[0] == software and _version(k)[1])
    if not versions:
        raise TenfoldError(f"There is no software stack {name!r}{nearest(name, known)}: name {', '.join(known)}.")
    before = [k for v, k in versions if not version or v <= version]
    return known[before[-1] if before else versions[0][1]]


def _version(name: str) -> tuple[str, tuple[int, ...]]:
    """`megatron-bridge-26.02` as its name and (26, 2)."""
    software, _, version = name.lower().rpartition("-")
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)*", version):
        return name.lower(), ()
    return software, tuple(map(int, version.split(".")))


def machine(name: str, stack_name: str = "tenfold", **changes: Any) -> Machine:
    """A machine by the key of its accelerator. `changes` replace constants (as another network's rate).

    An accelerator without constants of its own takes those that `constants.toml` gives for all, and says so.
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
        share *= (changes["limit_w"] / part.tdp_w) ** (1 / 3)  # dynamic power goes with the cube of the clock
    constants = replace(constants, matmul_efficiency=min(1.0, share))
    return Machine(part, constants, stack(stack_name), str(merged.get("source", "")))
