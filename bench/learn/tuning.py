"""Speed of SFT and DPO compared with TRL on one model: the same chats per step, both in float32, in alternating rounds.

    python -m bench.learn.tuning --threads 2

Only tokens of chats and answers count, not padding. By default TRL computes the reference of DPO in every step; `--precomputed`
lets TRL compute it beforehand, as Tenfold does.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.harness import Headline, Row, alternate, options, ratio, ratio_interval, write_results
from tenfold.learn.tasks.compared import AnswerRows
from tenfold.learn.walk import smollm2, unpacked
from tenfold.model.io.huggingface import read_model
from tenfold.train.run_file import config_from_fields
from tenfold.train.tasks.find import open_task

ROUNDS = 5
SEQ_LEN = 512
ROWS = 4  # of Tenfold's in a step; TRL gets the chats that these rows hold


def chats(count: int) -> list[list[dict[str, str]]]:
    """Questions and answers of many lengths; the same ones for each call."""
    words = Path(__file__).read_text().split()

    def text(i: int, n: int) -> str:
        return " ".join(words[(i * 7 + k * (1 + i % 5)) % len(words)] for k in range(n))

    return [
        [{"role": "user", "content": text(i, 8 + i * 13 % 40)}, {"role": "assistant", "content": text(i + 3, 4 + i * i % 90)}]
        for i in range(count)
    ]


def rows_of(kind: str) -> list[dict[str, Any]]:
    found = chats(200)
    if kind == "sft":
        return [{"messages": chat} for chat in found]
    return [
        {"prompt": one[:1], "chosen": one[1:], "rejected": [{"role": "assistant", "content": other[1]["content"] + " no"}]}
        for one, other in zip(found, found[1:] + found[:1], strict=True)
    ]


def ours(kind: str, model: Path, file: Path) -> tuple[Callable[[], float], int, int]:
    """(Tenfold's step, which returns its seconds; its number of tokens; its number of chats or pairs)."""
    fields = {
        "tokens": ROWS * SEQ_LEN, "init_from": str(model), "dtype": "float32", "task": {"name": kind},
        "data": {"corpus": str(file), "seq_len": SEQ_LEN, "batch_size": ROWS, "max_epochs": 99},
    }  # fmt: skip
    task, network = open_task(config_from_fields(fields, "bench"), file.parent, quiet=True), read_model(model)
    rows = task.rows(0, slice(None))
    packed = rows.packed.rows if isinstance(rows, AnswerRows) else rows.batch  # type: ignore[attr-defined]
    documents = sum(len(set(row[row >= 0].tolist())) for row in packed.document)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=True)

    def step() -> float:
        began = time.perf_counter()
        batch = rows.on(torch.device("cpu"), slice(None))
        (task.loss(network, batch).loss / rows.weight()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - began

    return step, int((packed.document >= 0).sum()), documents // (2 if kind == "dpo" else 1)


def theirs(kind: str, model: Path, rows: list[dict[str, Any]], precomputed: bool) -> tuple[Callable[[], float], int]:
    """(TRL's step on these rows, which returns its seconds; its number of tokens)."""
    import datasets
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer

    common: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(), "per_device_train_batch_size": len(rows), "report_to": [], "use_cpu": True, "bf16": False,
        "max_length": SEQ_LEN, "disable_tqdm": True, "gradient_checkpointing": False,
    }  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(model)
    load, dataset = AutoModelForCausalLM.from_pretrained, datasets.Dataset.from_list(rows)
    network = load(model, dtype=torch.float32)
    trainer: Any
    if kind == "sft":
        trainer = trl.SFTTrainer(network, trl.SFTConfig(**common), train_dataset=dataset, processing_class=tokenizer)
    else:
        args = trl.DPOConfig(**common, precompute_ref_log_probs=precomputed)
        trainer = trl.DPOTrainer(
            network, load(model, dtype=torch.float32), args=args, train_dataset=dataset, processing_class=tokenizer
        )
    batch = next(iter(trainer.get_train_dataloader()))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=True)

    def step() -> float:
        began = time.perf_counter()
        trainer.compute_loss(trainer.model, batch).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - began

    return step, int(batch["attention_mask"].sum())


def measure(kind: str, model: Path, precomputed: bool) -> Row:
    rows = rows_of(kind)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        own_step, own_tokens, count = ours(kind, model, file)
        their_step, their_tokens = theirs(kind, model, rows[:count], precomputed)
        seconds = alternate({"tenfold": own_step, "trl": their_step}, ROUNDS)
    rates = {"tenfold": [own_tokens / s for s in seconds["tenfold"]], "trl": [their_tokens / s for s in seconds["trl"]]}
    return {
        "what": kind, "examples": count, "tokens_per_s": median(rates["tenfold"]), "trl_tokens_per_s": median(rates["trl"]),
        "vs_trl": ratio(rates["tenfold"], rates["trl"]), "interval": ratio_interval(rates["tenfold"], rates["trl"]),
        "reference_precomputed_for_trl": precomputed and kind == "dpo", "threads": torch.get_num_threads(),
    }  # fmt: skip


def headline(rows: list[Row]) -> Headline:
    for row in rows:
        low, high = row["interval"]
        yield f"{row['what']} beside TRL, tokens/s", f"{row['vs_trl']:.2f}x (95 %: {low:.2f} to {high:.2f})"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", type=Path, help="a model in Hugging Face layout; by default SmolLM2-135M-Instruct")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precomputed", action="store_true", help="TRL also computes DPO's reference beforehand")
    parser.add_argument("--kinds", nargs="+", default=["sft", "dpo"], choices=["sft", "dpo"])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows, model = [], given.model or unpacked(smollm2(), Path(tempfile.mkdtemp()) / "smollm2")
    for kind in given.kinds:
        rows.append(measure(kind, model, given.precomputed))
        print(rows[-1], flush=True)
    write_results("tuning", rows, headline(rows))


if __name__ == "__main__":
    main()
