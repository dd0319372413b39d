"""SmolLM2-135M-Instruct as GGUF files: greedy answers of llama.cpp compared with ours, and the loss of precision of each format.

    python -m bench.learn.exports --prompts 50 --length 16 --kinds f16 q8_0 q4_0 q4_k

For each format the greedy answers of llama.cpp to the prompts are compared with those of the original model. The divergence of the
exported model from the original is measured on the original's answers, in nats per token, with a 95 % interval over prompts.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.harness import options, write_results
from tenfold.learn.walk import smollm2
from tenfold.model.io.ask_llamacpp import ask
from tenfold.model.io.compare import answers, divergence, log_probs
from tenfold.model.io.gguf_writer import write_gguf
from tenfold.model.io.huggingface import read_model
from tenfold.model.io.tokenizer import read_tokenizer

SUBJECTS = ("water", "a bicycle", "the moon", "bread", "a poem", "Peru", "honey", "a violin", "rain", "the number seven")
FRAMES = ("Tell me about {}.", "{} is", "What do people say of {}?", "I once saw {} and", "A short list about {}:\n1.")
PROMPTS = [frame.format(subject) for frame in FRAMES for subject in SUBJECTS]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--kinds", nargs="+", default=["f16", "q8_0", "q4_0", "q4_k"])
    given = parser.parse_args()
    source, prompts = smollm2(), PROMPTS[:: max(1, len(PROMPTS) // given.prompts)][: given.prompts]
    said = answers(read_model(source).eval(), read_tokenizer(source), prompts, given.length)
    rows = []
    with TemporaryDirectory() as folder:
        for kind in given.kinds:
            file = Path(folder) / f"{kind}.gguf"
            notes = write_gguf(source, file, kind)
            model = read_model(file).eval()
            kl = divergence([answer.log_probs for answer in said], [log_probs(model, answer.tokens) for answer in said])
            theirs = ask(str(file), [(answer.prompt, given.length) for answer in said])
            equal = sum(answer.said[: len(tokens)] == tokens for answer, (_, tokens) in zip(said, theirs, strict=True))
            rows.append(
                {
                    "kind": kind,
                    "bytes": file.stat().st_size,
                    "equal": equal,
                    "prompts": len(said),
                    "kl_nats": list(kl),
                    "notes": notes,
                }
            )
            print(rows[-1], file=sys.stderr)
    headline = [
        (f"SmolLM2-135M as GGUF {row['kind']}: greedy answers of llama.cpp equal to ours", f"{row['equal']} of {row['prompts']}")
        for row in rows
    ]
    write_results("exports", rows, headline, "python -m bench.learn.exports")


if __name__ == "__main__":
    main()
