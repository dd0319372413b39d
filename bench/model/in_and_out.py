"""Models that come in and go out: llama.cpp's vectors of vocabularies, and SmolLM2 from a GGUF file through training and out again.

    python -m bench.model.in_and_out --vectors llama.cpp/models --prompts 50 --steps 20

`--vectors` is the folder `models` of llama.cpp's source, whose `ggml-vocab-*.gguf` have texts (`.inp`) and their tokens (`.out`)
beside them; each file must give all of them, or be refused by name. SmolLM2-135M-Instruct is read from its GGUF file, trained for
a few steps, and written in Hugging Face layout and as GGUF F16. Greedy answers of `transformers` to the one and of llama.cpp to
the other are compared with ours, token for token.
"""

import sysconfig
from argparse import Namespace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench.harness import Row, options, tenfold, write_results
from bench.learn.exports import PROMPTS
from tenfold.learn.walk import smollm2
from tenfold.model.io.ask_llamacpp import ask
from tenfold.model.io.compare import Answer, answers
from tenfold.model.io.gguf_tokenizer import read_gguf_tokenizer
from tenfold.model.io.gguf_writer import write_gguf
from tenfold.model.io.huggingface import read_model
from tenfold.model.io.tokenizer import read_tokenizer
from tenfold.spec.errors import TenfoldError

ROWS, SEQ_LEN = 4, 64
MARK = "\n__ggml_vocab_test__\n"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    vectors = [vocabulary(file) for file in sorted(given.vectors.glob("ggml-vocab-*.gguf"))] if given.vectors else []
    with TemporaryDirectory() as folder:
        trained = trained_answers(Path(folder), given)
    read = [row for row in vectors if "refused" not in row]
    whole = sum(row["equal"] == row["texts"] for row in read)
    headline = [(row["runtime"], f"{row['equal']} of {row['prompts']} greedy answers equal") for row in trained]
    if vectors:
        headline.insert(0, ("vocabularies", f"{whole} of {len(read)} as llama.cpp, {len(vectors) - len(read)} refused by name"))
    write_results("in_and_out", vectors + trained, headline, "python -m bench.model.in_and_out")


def vocabulary(file: Path) -> Row:
    """How many of a vocabulary's texts become the stated tokens; those without stated ones are read alone."""
    try:
        tokenizer = read_gguf_tokenizer(file)
    except TenfoldError as error:
        return {"vocabulary": file.stem, "refused": str(error).replace(f"{file} ", "")}
    stated = Path(f"{file}.inp")
    texts = stated.read_text().split(MARK) if stated.exists() else []
    wanted = Path(f"{file}.out").read_text().split("\n")[: len(texts)] if texts else []
    found = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    equal = sum(ids == list(map(int, line.split())) for ids, line in zip(found, wanted, strict=True))
    return {"vocabulary": file.stem, "texts": len(texts), "equal": equal}


def trained_answers(folder: Path, given: Namespace) -> list[Row]:
    """SmolLM2 trained on, and its answers in other runtimes beside ours."""
    run = folder / "run.toml"
    run.write_text(
        f'tokens = {given.steps * ROWS * SEQ_LEN}\ninit_from = "{smollm2()}"\n'
        f'[data]\ncorpus = "{Path(sysconfig.get_path("stdlib")) / "email"}"\nseq_len = {SEQ_LEN}\nbatch_size = {ROWS}\n'
        '[optimizer]\nname = "adamw"\nlearning_rate = 3e-4\n[task]\nevaluate_tokens = 640\n'
    )
    tenfold("train", run, "--out", folder / "run")
    model, file = folder / "run" / "model", folder / "out.gguf"
    prompts = PROMPTS[:: max(1, len(PROMPTS) // given.prompts)][: given.prompts]
    said = answers(read_model(model).eval(), read_tokenizer(model), prompts, given.length)
    write_gguf(model, file, "f16")
    rounded = answers(read_model(file).eval(), read_tokenizer(file), prompts, given.length)
    told = ask(str(file), [(answer.prompt, given.length) for answer in rounded])
    in_llamacpp = sum(
        count == answer.begin and answer.said[: len(tokens)] == tokens
        for answer, (count, tokens) in zip(rounded, told, strict=True)
    )
    return [
        {"runtime": "transformers, F32", "equal": in_transformers(model, said), "prompts": len(said)},
        {"runtime": "llama.cpp, F16", "equal": in_llamacpp, "prompts": len(said)},
    ]


def in_transformers(model: Path, said: list[Answer]) -> int:
    """How many answers are those of `transformers`, which ends where the model's files say that it ends."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model)
    equal = 0
    for answer in said:
        ids = tokenizer(answer.prompt, return_tensors="pt").input_ids
        out = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=len(answer.said), do_sample=False)[
            0
        ].tolist()
        equal += out == answer.tokens[: len(out)]
    return equal


if __name__ == "__main__":
    main()
