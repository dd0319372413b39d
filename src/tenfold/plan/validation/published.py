"""Reading of published measurements: each row of a table becomes a model, a layout, a machine and a measured step time."""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tenfold.plan.facts import facts
from tenfold.plan.validation.tables import ASSUMED_STACK, DATA, Refused, Unread, number, read_table, whole, word
from tenfold.plan.workload.machine import Machine, machine
from tenfold.plan.workload.memory import memory
from tenfold.plan.workload.search import least_recompute
from tenfold.plan.workload.step_time import step_time
from tenfold.spec.accelerator import accelerators
from tenfold.spec.errors import TenfoldError, nearest
from tenfold.spec.layout import Layout
from tenfold.spec.model import ModelSpec, published_models

# (pattern of the table's column `gpu`, accelerator or the beginning of its key, differences from its data sheet)
PARTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (r"500 ?w", "h100", {"memory_gb": 102.0, "memory_gb_per_s": 2400.0, "limit_w": 500.0}),
    (r"a100.?40", "a100", {"memory_gb": 42.9, "memory_gb_per_s": 1555.0}),
    (r"gb300", "gb300", {"domain_gpus": 72}),
    (r"gb200", "gb200", {"domain_gpus": 72}),
    (r"gh200", "gh200", {}),
    (r"tpu ?v?([0-9]+[a-z]*)", "tpu-v", {}),
    (r"(trainium|trn)([0-9])", "trainium", {}),
    (r"(mi3[0-9]{2}x|a100|h800|h200|h100|b300|b200|v100|gaudi[ -]?[23])", "", {}),
)
PRECISIONS = {
    "bf16": "bf16", "fp16": "bf16", "amp_bf16": "bf16", "amp_fp16": "bf16", "fp8": "fp8", "amp_fp8": "fp8", "mxfp8": "fp8",
    "fp8 mixed": "fp8", "fp8-cs": "fp8", "fp8-mx": "fp8", "fp8-cs (fp8-mx)": "fp8", "fp8 (see note)": "fp8", "nvfp4": "fp4",
}  # fmt: skip
RECOMPUTE = {
    "": None, "n/a": None, "none": "none", "false": "none", "full": "full", "true": "full", "selective": "selective",
}  # fmt: skip
SHARDING = {
    "": None, "n/a": None, "0": 1, "1": 1, "2": 2, "3": 3, "none": 0, "zero-0": 0, "zero-1": 1, "zero-2": 2, "zero-3": 3,
    "fsdp2": 3, "full_shard": 3, "shard_grad_op": 2, "hybrid_shard": 3, "fsdp (params not resharded)": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One measurement: model, layout, machine, and seconds of a step. `memory_gib` is None where it was not reported; `stack_said`
    is false where neither the table nor its source names the software."""

    source: str
    name: str
    spec: ModelSpec
    layout: Layout
    machine: Machine
    step_s: float
    precision: str
    memory_gib: float | None = None
    stack_said: bool = True

    def group(self, same_batch: bool) -> tuple[Any, ...]:
        """The key of a group: layouts of the same source, model, GPUs, sequence and precision; with `same_batch`, also batch."""
        lay = self.layout
        batch = lay.global_batch if same_batch else None
        return self.source, self.spec, lay.world, self.machine.accelerator.key, lay.seq_len, self.precision, batch


def gpt(name: str, dim: int, layers: int, heads: int, vocab_size: int, context: int) -> ModelSpec:
    """A GPT-2-like model, as one with a gated feed-forward of the same number of weights."""
    return ModelSpec(name, dim, layers, heads, heads, round(8 * dim / 3), vocab_size, context=context, tied=True)


def _spec(row: dict[str, str], seq_len: int) -> ModelSpec:
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
    if number(row, "hidden") and number(row, "layers") and number(row, "heads"):
        vocab = 131072 if "131072" in row.get("notes", "") or "h100" in row["gpu"].lower() else 51200
        if "bloom" in plain:
            vocab = 250880
        return gpt(row["model"], whole(row, "hidden"), whole(row, "layers"), whole(row, "heads"), vocab, seq_len)
    raise Refused("model", row["model"], "has no published shape: give hidden, layers and heads")


def _stack(row: dict[str, str], asked: str | None) -> tuple[str, bool]:
    """(the software of a row, whether anything names it): the row's own, else `asked`, else that of its source, else assumed."""
    if row.get("stack"):
        return row["stack"], True
    found = next((name for source, name in facts("sources").items() if row["source"].startswith(source)), None)
    return asked or found or ASSUMED_STACK, bool(asked or found)


def _machine(row: dict[str, str], stack_name: str) -> Machine:
    text = row["gpu"].lower()
    for pattern, part, changes in PARTS:
        if match := re.search(pattern, text):
            key = part if part and not part.endswith(("v", "trainium")) else part + (match[match.lastindex or 0]).replace(" ", "")
            if key in accelerators():
                return machine(key, stack_name, **changes)
    raise Refused("gpu", row["gpu"], f"is no known accelerator{nearest(text, accelerators())}")


def _step_s(row: dict[str, str], spec: ModelSpec, layout: Layout, part: Machine) -> float:
    """Seconds of a step, from the row's time, tokens/s, or FLOP/s (by the convention of its source)."""
    if seconds := number(row, "iter_time_s"):
        return seconds
    if rate := number(row, "tokens_per_s_per_gpu"):
        return layout.tokens_per_step / layout.world / rate
    tflops, mfu = number(row, "tflops_per_gpu"), number(row, "mfu_pct")
    tflops = tflops or (mfu / 100 * part.accelerator.bf16_tflops if mfu else None)
    if not tflops:
        raise Refused("iter_time_s", "", "is empty, as are tokens_per_s_per_gpu, tflops_per_gpu and mfu_pct")
    convention = "exact" if "llama 3" in row["source"].lower() else "full_attention"
    flops = spec.train_flops_per_token(layout.seq_len, convention)  # type: ignore[arg-type]
    if "hardware" in row["flops_counted"]:
        flops += (flops - 6.0 * spec.vocab_size * spec.dim) / 3  # with the recomputed forward pass of every layer
    return layout.tokens_per_step / layout.world * flops / (tflops * 1e12)


def _sharding(row: dict[str, str], dp: int) -> int:
    """The ZeRO stage of a row: an empty cell is a sharded optimizer (1), a number above 3 that of FSDP's ranks (3)."""
    text = row["fsdp_or_zero"].split(" (")[0].strip()
    if text.isdigit() and int(text) > 3:
        return 3
    zero = word({"fsdp_or_zero": row["fsdp_or_zero"] if "params" in row["fsdp_or_zero"] else text}, "fsdp_or_zero", SHARDING)
    return 1 if zero is None else zero


def _layout(row: dict[str, str], part: Machine, precision: str) -> Layout:
    """The layout of a row, with its software's default where a cell is empty. Raises Refused for cells that contradict others."""
    gpus, seq_len, stack = whole(row, "n_gpus", 0), whole(row, "seq_len", 2048), part.stack
    if not gpus:
        raise Refused("n_gpus", row["n_gpus"], "is empty")
    tp, pp, cp, ep = (whole(row, column) for column in ("tp", "pp", "cp", "ep"))
    for column, ranks in (("tp", tp), ("pp", tp * pp), ("cp", tp * pp * cp)):
        if gpus % ranks:
            raise Refused(column, row[column], f"does not divide {gpus} GPUs (tp {tp} x pp {pp} x cp {cp})")
    dp = gpus // (tp * pp * cp)
    if whole(row, "dp", dp) != dp:
        raise Refused("dp", row["dp"], f"is not what {gpus} GPUs leave beside tp {tp} x pp {pp} x cp {cp}: {dp}")
    accumulated = whole(row, "grad_accum")
    batch = whole(row, "global_batch_seqs", dp * whole(row, "micro_batch") * accumulated)
    if batch < dp:
        raise Refused("global_batch_seqs", row["global_batch_seqs"], f"is below {dp} data parallel ranks")
    micro = whole(row, "micro_batch", 0) or (0 if stack.accumulates else batch // dp)
    virtual = whole(row, "vp", 0)
    if not virtual and not (stack.interleaves and pp > 1):  # an interleaved pipeline's follow from the model's layers
        virtual = 1
    whole_fsdp = stack.name.startswith("maxtext") and not row["fsdp_or_zero"]
    return Layout(
        tp=tp, pp=pp, cp=cp, ep=ep, etp=tp if dp * cp % ep == 0 else 1, dp_shard=dp, micro_batch=micro, global_batch=batch,
        seq_len=seq_len,
        schedule="interleaved" if virtual > 1 else "1f1b", virtual_stages=virtual,
        activation_checkpointing=word(row, "act_checkpointing", RECOMPUTE) or "none",
        zero=3 if whole_fsdp else _sharding(row, dp), dtype=precision,
    )  # fmt: skip


def fill_in(spec: ModelSpec, layout: Layout, part: Machine, recompute_known: bool) -> Layout:
    """The layout with what its table left out: virtual stages and recomputation by its software's defaults (as little
    recomputation as fits where it has none), and the fastest micro-batch that fits, for which no software has a default."""
    several = (
        [layout.micro_batch] if layout.micro_batch else [m for m in (1, 2, 4, 8) if layout.global_batch % (m * layout.dp) == 0]
    )
    filled = [_filled(spec, layout.replace(micro_batch=m), part, recompute_known) for m in several or [1]]
    return min(filled, key=lambda one: step_time(spec, one, part).total_s * (1 if memory(spec, one, part).fits else 100))


def _filled(spec: ModelSpec, layout: Layout, part: Machine, recompute_known: bool) -> Layout:
    if not layout.virtual_stages:
        stages = -(-spec.n_layers // layout.pp)
        virtual = stages if layout.micro_batches % layout.pp == 0 else 1
        layout = layout.replace(virtual_stages=virtual, schedule="interleaved" if virtual > 1 else "1f1b")
    if recompute_known:
        return layout
    default: Any = part.stack.recompute
    return layout.replace(activation_checkpointing=default) if default else least_recompute(spec, layout, part)[0]


def read_layouts(path: Path | None = None, stack: str | None = None) -> tuple[list[Row], list[Unread]]:
    """(rows, rows that could not be read) of a table with the columns of layouts.csv; by default, of the package's own tables.

    `stack` is the software of rows that do not name theirs.
    """
    tables = [read_table("layouts.csv", path)] if path else [read_table("layouts.csv"), read_table("layouts_2026.csv")]
    rows, unread = [], []
    for line, row in ((i + 2, row) for table in tables for i, row in enumerate(table)):
        try:
            rows.append(_read(row, stack))
        except Refused as fault:
            unread.append(Unread(line, fault.column, fault.value, fault.why))
    return rows, unread


def _read(row: dict[str, str], asked: str | None) -> Row:
    stack_name, said = _stack(row, asked)
    precision = word(row, "precision", PRECISIONS)
    spec, part = _spec(row, whole(row, "seq_len", 2048)), _machine(row, stack_name)
    layout = _layout(row, part, precision)
    try:
        part.accelerator.peak_flops(precision)
    except TenfoldError:
        raise Refused("precision", row["precision"], f"is no precision of {part.accelerator.name}") from None
    layout = fill_in(spec, layout, part, bool(RECOMPUTE[row["act_checkpointing"].strip().lower()]))
    step_s = _step_s(row, spec, layout, part)
    return Row(row["source"], row["model"], spec, layout, part, step_s, precision, number(row, "memory_gib"), said)


def read_vtrain(path: Path | None = None) -> Iterator[Row]:
    """The rows of vTrain's tables (A100, Megatron-LM): `single` runs without recomputation, `multi` with full recomputation."""
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
            part = machine("a100", "megatron-lm-2021" if several else "megatron-lm-2021-node")
            yield Row(source, spec.name, spec, layout, part, get["iteration time (ms)"] / 1e3, "bf16")
