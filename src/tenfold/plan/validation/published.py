"""Published measurements as layouts of this plan: one reading of each table's conventions, row by row."""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

from tenfold.plan.facts import facts
from tenfold.plan.workload.machine import Machine, machine
from tenfold.plan.workload.memory import memory
from tenfold.plan.workload.search import divisors, least_recompute
from tenfold.plan.workload.step_time import step_time
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import readable
from tenfold.spec.layout import Layout
from tenfold.spec.model import ModelSpec, published_models

DATA = resources.files("tenfold.plan").joinpath("data/published")

# (pattern in the table's `gpu`, accelerator, what differs from its data sheet)
PARTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (r"500 ?w", "h100", {"memory_gb": 102.0, "memory_gb_per_s": 2400.0, "limit_w": 500.0}),
    (r"a100.?40", "a100", {"memory_gb": 42.9, "memory_gb_per_s": 1555.0}),
    (r"a100", "a100", {}),
    (r"h800", "h800", {}),
    (r"h200", "h200", {}),
    (r"h100", "h100", {}),
    (r"gb300", "gb300", {"domain_gpus": 72}),
    (r"gb200", "gb200", {"domain_gpus": 72}),
    (r"b300", "b300", {}),
    (r"b200", "b200", {}),
)
# (pattern in the table's source and notes, software)
STACKS = (
    (r"llama 3 paper", "megatron"),
    (r"vtrain|narayanan|tr11|bigscience", "megatron-2021"),
    (r"torchtitan.*compile|compile.*torchtitan", "fsdp-compiled"),
    (r"torchtitan", "fsdp-compiled"),
    (r"llm-foundry|fsdp|full_shard", "fsdp"),
    (r"bridge", "megatron-2025"),
)


@dataclass(frozen=True)
class Row:
    """One measurement: what ran, where, and how long a step took. `memory_gib` where it was reported."""

    source: str
    name: str
    spec: ModelSpec
    layout: Layout
    machine: Machine
    step_s: float
    precision: str
    memory_gib: float | None = None

    def group(self, same_batch: bool) -> tuple[Any, ...]:
        """Rows of one group are layouts of the same model, GPUs and sequence, and of the same global batch where asked."""
        lay = self.layout
        batch = lay.global_batch if same_batch else None
        return self.source, self.spec, lay.world, self.machine.accelerator.key, lay.seq_len, self.precision, batch


def gpt(name: str, dim: int, layers: int, heads: int, vocab_size: int, context: int) -> ModelSpec:
    """A GPT-2-like model as a gated one of the same weights."""
    return ModelSpec(name, dim, layers, heads, heads, round(8 * dim / 3), vocab_size, context=context, tied=True)


def _number(text: str | None) -> float | None:
    match = re.match(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)", (text or "").lower())
    return float(match[1]) if match else None


def _spec(row: dict[str, str], seq_len: int) -> ModelSpec | None:
    plain = row["model"].lower().replace("_", "-").replace(" ", "-")
    for name, spec in published_models().items():
        if plain == name or (
            plain.startswith("llama") and name.startswith("llama-3.1") and plain.endswith("-" + name.rsplit("-", 1)[1])
        ):
            return replace(spec, context=seq_len)
    for name, fields in facts("shapes").items():
        if row["model"].lower().startswith(name.lower()):
            if "gpt" in fields:
                dim, layers, heads, vocab_size = fields["gpt"]
                return gpt(name, dim, layers, heads, vocab_size, seq_len)
            return ModelSpec(name=name, **{k: v for k, v in fields.items() if k != "source"})
    if _number(row["hidden"]) and _number(row["layers"]) and _number(row["heads"]):
        vocab = 131072 if "131072" in row.get("notes", "") or "h100" in row["gpu"].lower() else 51200
        if "bloom" in plain:
            vocab = 250880
        return gpt(row["model"], int(float(row["hidden"])), int(float(row["layers"])), int(float(row["heads"])), vocab, seq_len)
    return None


def _machine(row: dict[str, str]) -> Machine | None:
    what = " ".join((row["source"], row.get("notes", ""), row["fsdp_or_zero"])).lower()
    if "torchtitan" in what and "eager" in what:
        stack = "fsdp"
    else:
        stack = next((name for pattern, name in STACKS if re.search(pattern, what)), "megatron")
    for pattern, part, changes in PARTS:
        if re.search(pattern, row["gpu"].lower()):
            return machine(part, stack, **changes)
    return None


def _step_s(row: dict[str, str], spec: ModelSpec, layout: Layout, part: Machine) -> float | None:
    """Seconds of a step from whatever the row gives: time, tokens/s, or FLOP/s by the convention of its source."""
    seconds = _number(row["iter_time_s"])
    if seconds:
        return seconds
    rate = _number(row["tokens_per_s_per_gpu"])
    if rate:
        return layout.tokens_per_step / layout.world / rate
    tflops = _number(row["tflops_per_gpu"])
    if not tflops:
        mfu = _number(row["mfu_pct"])
        tflops = mfu / 100 * part.accelerator.bf16_tflops if mfu else None
    if not tflops:
        return None
    convention = "exact" if "llama 3" in row["source"].lower() else "full_attention"
    flops = spec.train_flops_per_token(layout.seq_len, convention)  # type: ignore[arg-type]
    if "hardware" in row["flops_counted"]:
        flops += (flops - 6.0 * spec.vocab_size * spec.dim) / 3  # every layer's forward pass once more
    return layout.tokens_per_step / layout.world * flops / (tflops * 1e12)


def _layout(row: dict[str, str], seq_len: int) -> Layout | None:
    gpus = _number(row["n_gpus"])
    if not gpus:
        return None
    tp, pp, cp, ep = (int(_number(row[k]) or 1) for k in ("tp", "pp", "cp", "ep"))
    dp = int(gpus) // (tp * pp * cp)
    micro = int(_number(row["micro_batch"]) or 0)
    batch = int(_number(row["global_batch_seqs"]) or dp * max(1, micro) * int(_number(row["grad_accum"]) or 1))
    sharding = row["fsdp_or_zero"].lower()
    full = any(word in sharding for word in ("fsdp2", "full_shard")) or (sharding.isdigit() and int(sharding) > 1)
    checkpointing = row["act_checkpointing"].lower()
    again: Any = {"full": "full", "true": "full", "selective": "selective"}.get(checkpointing, "none")
    virtual = int(_number(row["vp"]) or 0)
    return Layout(
        tp=tp, pp=pp, cp=cp, ep=ep, etp=tp, dp_shard=dp, micro_batch=micro, global_batch=batch, seq_len=seq_len,
        schedule="interleaved" if virtual > 1 else "1f1b", virtual_stages=virtual, activation_checkpointing=again,
        zero=3 if full else 2 if "grad_op" in sharding or "not resharded" in sharding else 1,
        dtype="fp8" if "fp8" in row["precision"].lower() else "bf16",
    )  # fmt: skip


def fill_in(spec: ModelSpec, layout: Layout, part: Machine, recompute_known: bool) -> Layout:
    """The layout with what its table left out (micro-batch, virtual stages, recomputation) as this plan would choose it."""
    micro = [layout.micro_batch]
    if not layout.micro_batch:
        micro = [m for m in (1, 2, 4, 8) if layout.global_batch % (m * layout.dp) == 0] or [1]
    stages = -(-spec.n_layers // layout.pp)
    virtual = [layout.virtual_stages] if layout.virtual_stages else [v for v in divisors(stages) if layout.pp > 1 or v == 1]
    best: tuple[float, Layout] | None = None
    for m, v in product(micro, virtual):
        tried = layout.replace(micro_batch=m, virtual_stages=v, schedule="interleaved" if v > 1 else "1f1b")
        if v > 1 and not layout.virtual_stages and tried.micro_batches % layout.pp:
            continue
        if not recompute_known:
            tried, needed = least_recompute(spec, tried, part)
        else:
            needed = memory(spec, tried, part)
        seconds = step_time(spec, tried, part).total_s * (1 if needed.fits else 100)
        if best is None or seconds < best[0]:
            best = (seconds, tried)
    return best[1] if best else layout.replace(micro_batch=1, virtual_stages=1)


def table(name: str, path: Path | None = None) -> list[dict[str, str]]:
    """The rows of `path`, or of the package's own copy of `name`. Raises TenfoldError where columns of that are missing."""
    own = csv.DictReader(DATA.joinpath(name).read_text().splitlines())
    if path is None:
        return list(own)
    if not path.is_file():
        raise TenfoldError(f"There is no table at {path}.")
    with readable(path):
        given = csv.DictReader(path.read_text().splitlines())
    missing = [column for column in own.fieldnames or () if column not in (given.fieldnames or ())]
    if missing:
        raise TenfoldError(f"{path} has no column {', '.join(missing)}: it needs those of {name}.")
    return list(given)


def read_layouts(path: Path | None = None) -> tuple[list[Row], int]:
    """(rows, rows that could not be read) of a table with the columns of layouts.csv; the package's own copy by default."""
    rows, unread = [], 0
    for row in table("layouts.csv", path):
        found = _read(row)
        if found is None:
            unread += 1
        else:
            rows.append(found)
    return rows, unread


def _read(row: dict[str, str]) -> Row | None:
    seq_len = int(_number(row["seq_len"]) or 2048)
    spec, part, layout = _spec(row, seq_len), _machine(row), _layout(row, seq_len)
    precision = row["precision"].lower().removeprefix("amp_")
    precision = "bf16" if precision in ("bf16", "fp16") else precision
    if spec is None or part is None or layout is None or "fp4" in precision:
        return None
    if precision != "bf16" and part.accelerator.fp8_tflops is None:
        return None
    known = bool(row["act_checkpointing"])
    layout = fill_in(spec, layout, part, known)
    step_s = _step_s(row, spec, layout, part)
    if not step_s:
        return None
    return Row(row["source"], row["model"], spec, layout, part, step_s, precision, _number(row["memory_gib"]))


def read_vtrain(path: Path | None = None) -> Iterator[Row]:
    """Rows of vTrain's tables (A100, Megatron): `single` keeps activations, `multi` recomputes every layer."""
    files = [path] if path else [DATA.joinpath("vtrain_single.csv"), DATA.joinpath("vtrain_multi.csv")]
    for file in files:
        text = file.read_text(encoding="utf-8-sig")
        for row in csv.DictReader(text.splitlines()):
            get = {k.strip().lower(): float(v) for k, v in row.items()}
            several = "parameters (billion)" in get
            gpus, batch, micro, dim, heads, layers, seq, tp, dp, pp = (
                int(get[k])
                for k in (
                    "# gpus", "global batch", "micro batch", "hidden size", "attention heads", "# layers", "sequence length",
                    "tensor parallelism", "data parallelism", "pipeline parallelism",
                )
            )  # fmt: skip
            layout = Layout(
                tp=tp, pp=pp, dp_shard=dp, micro_batch=micro, global_batch=batch, seq_len=seq, zero=0,
                activation_checkpointing="full" if several else "none",
            )  # fmt: skip
            assert layout.world == gpus
            spec = gpt(f"GPT {dim}x{layers}", dim, layers, heads, 51200, seq)
            source = "vTrain, 64 to 512 GPUs" if several else "vTrain, one node"
            part = machine("a100", "megatron-2021" if several else "megatron-2021-node")
            yield Row(source, spec.name, spec, layout, part, get["iteration time (ms)"] / 1e3, "bf16")
