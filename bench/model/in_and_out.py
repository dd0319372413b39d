"""Import and export of models: llama.cpp's tokenizer test vectors, and SmolLM2 from GGUF through training and out again.

    python -m bench.model.in_and_out --llama-cpp llama.cpp --prompts 50 --steps 20 --models generations/g1/model

`--llama-cpp` is llama.cpp's source tree. Beside its `models/ggml-vocab-*.gguf` are texts (`.inp`) and their tokens (`.out`). Each
file must reproduce all of them, or be refused by name. SmolLM2-135M-Instruct is read from its GGUF file, trained for a few steps,
and written in Hugging Face layout and as GGUF F16. Greedy answers of `transformers` to the one and of llama.cpp to the other are
compared with ours, token for token. The same is done for a model with a tokenizer that is trained here, and for one with experts.
llama.cpp's own converter converts these directories and those of `--models`; if it does not know a tokenizer, it gets the line
that `tenfold export --to hf` prints.
"""

import shutil
import subprocess
import sys
import sysconfig
from argparse import Namespace
from collections.abc import Iterator, Sequence
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
from tenfold.model.io.llamacpp_hash import llamacpp_hash
from tenfold.model.io.runtimes import shown
from tenfold.model.io.tokenizer import read_tokenizer, read_vocabulary
from tenfold.spec.errors import TenfoldError

ROWS, SEQ_LEN = 4, 64
SHAPE = "context = 512\ndim = 128\nn_layers = 4\nn_heads = 4\nn_kv_heads = 2\nffn_dim = 256\n"
MADE = {
    "own tokenizer": f"[model]\n{SHAPE}",
    "experts": f'[model]\nfamily = "llama4"\n{SHAPE}n_experts = 4\nexpert_ffn_dim = 128\nmoe_every = 2\nattention_chunk = 8192\n'
    "nope_every = 4\nqk_norm = true\ntemperature_floor = 8192\n",
}
MARK = "\n__ggml_vocab_test__\n"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--llama-cpp", type=Path)
    parser.add_argument("--models", type=Path, nargs="*", default=[])
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    files = sorted((given.llama_cpp / "models").glob("ggml-vocab-*.gguf")) if given.llama_cpp else []
    vectors = [vocabulary(file) for file in files]
    with TemporaryDirectory() as folder:
        answered = list(answered_rows(Path(folder), given))
    read = [row for row in vectors if "refused" not in row]
    whole = sum(row["equal"] == row["texts"] for row in read)
    headline = [
        (f"{row['model']}, {row['runtime']}", f"{row['equal']} of {row['prompts']} greedy answers equal") for row in answered
    ]
    if vectors:
        headline.insert(0, ("vocabularies", f"{whole} of {len(read)} as llama.cpp, {len(vectors) - len(read)} refused by name"))
    write_results("in_and_out", vectors + answered, headline, "python -m bench.model.in_and_out")


def vocabulary(file: Path) -> Row:
    """How many of a vocabulary's texts are encoded as the test vectors say; a vocabulary without vectors is only read."""
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


def answered_rows(folder: Path, given: Namespace) -> Iterator[Row]:
    """A row for each model and runtime: how many answers equal ours."""
    models = {name: trained(folder / name, fields, given.steps) for name, fields in MADE.items()}
    models = {"SmolLM2": trained(folder / "smollm2", f'init_from = "{smollm2()}"', given.steps)} | models
    models |= {"/".join(path.parts[-2:]): path for path in given.models}
    prompts = PROMPTS[:: max(1, len(PROMPTS) // given.prompts)][: given.prompts]
    for name, model in models.items():
        said = answers(read_model(model).eval(), read_tokenizer(model), prompts, given.length)
        write_gguf(model, file := folder / "out.gguf", "f16")
        found: dict[str, Row] = {
            "transformers, F32": {"equal": in_transformers(model, said)},
            "llama.cpp, F16": {"equal": in_llamacpp(file, prompts, given.length)},
        }
        if given.llama_cpp:
            found["llama.cpp's converter, F16"] = converted(model, folder, prompts, given)
        yield from ({"model": name, "runtime": runtime, "prompts": len(prompts), **row} for runtime, row in found.items())


def trained(folder: Path, fields: str, steps: int) -> Path:
    """A model after a few steps on a part of the standard library, in Hugging Face layout."""
    folder.mkdir()
    run = folder / "run.toml"
    run.write_text(
        f"tokens = {steps * ROWS * SEQ_LEN}\n{fields}\n"
        f'[data]\ncorpus = "{Path(sysconfig.get_path("stdlib")) / "email"}"\nseq_len = {SEQ_LEN}\nbatch_size = {ROWS}\n'
        '[optimizer]\nname = "adamw"\nlearning_rate = 3e-4\n[task]\nevaluate_tokens = 640\n'
    )
    tenfold("train", run, "--out", folder / "run")
    return folder / "run" / "model"


def in_llamacpp(file: Path, prompts: Sequence[str], length: int) -> int:
    """How many greedy answers of llama.cpp equal Tenfold's from the same file."""
    tokenizer, stops = read_tokenizer(file), read_vocabulary(file).stop_tokens
    ours = answers(read_model(file).eval(), tokenizer, prompts, length)
    told = ask(str(file), [(answer.prompt, length) for answer in ours])
    equal = 0
    for answer, (count, tokens) in zip(ours, told, strict=True):
        said = shown(answer, tokenizer, stops)
        equal += count == answer.begin and tokens[: len(said)] == said
    return equal


def converted(model: Path, folder: Path, prompts: Sequence[str], given: Namespace) -> Row:
    """Convert a directory with llama.cpp's converter, by its own list of tokenizers or with our line added; compare its answers."""
    file, row = folder / "converted.gguf", {}
    for known, source in (("yes", given.llama_cpp), ("by our line", with_line(given.llama_cpp, folder / "converter", model))):
        command = [sys.executable, source / "convert_hf_to_gguf.py", model, "--outtype", "f16", "--outfile", file]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return {"tokenizer known": known, "equal": in_llamacpp(file, prompts, given.length)}
        row = {"refused": done.stderr.strip().splitlines()[-1], "equal": 0}
    return row


def with_line(source: Path, folder: Path, model: Path) -> Path:
    """A copy of the converter with the model's tokenizer in its list, as `tenfold export --to hf` tells a user to add it."""
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("conversion", "gguf-py"):
        shutil.copytree(source / part, folder / part)
    shutil.copyfile(source / "convert_hf_to_gguf.py", folder / "convert_hf_to_gguf.py")
    found, pre = llamacpp_hash(model)
    base, end = folder / "conversion" / "base.py", "        if res is None:\n"
    before, after = base.read_text().split(end, 1)
    base.write_text(f'{before}        if chkhsh == "{found}": res = "{pre}"\n{end}{after}')
    return folder


def in_transformers(model: Path, said: list[Answer]) -> int:
    """How many answers equal those of `transformers`, which stops where the model's files say."""
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
