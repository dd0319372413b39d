"""Get greedy answers from llama.cpp, in a separate process: `python -m tenfold.model.io.ask_llamacpp FILE`.

Standard input is a JSON list of pairs [prompt, number of tokens to generate]. The last line of standard output is a JSON list of
pairs [number of tokens in the prompt, ids of the answer's tokens].
"""

import json
import sys
from typing import Any


def ask(file: str, prompts: list[tuple[str, int]]) -> list[tuple[int, list[int]]]:
    """For each prompt, its number of tokens and the tokens of its greedy answer, which may include an end-of-text token."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_parallel, params.n_ctx, params.warmup = file, 1, 512, False
    params.cpuparams.n_threads, params.verbosity = 1, 0
    params.ui = params.fit_params = False
    server = xllamacpp.Server(params)
    found = []
    for prompt, length in prompts:
        body = {"prompt": prompt, "n_predict": length, "temperature": 0, "n_probs": 1, "ignore_eos": False}
        answer: dict[str, Any] = server.handle_completions(body)
        if "choices" not in answer:
            raise SystemExit(str(answer))
        content = (answer["choices"][0].get("logprobs") or {"content": []})["content"]
        found.append((answer["usage"]["prompt_tokens"], [token["id"] for token in content]))
    return found


if __name__ == "__main__":
    print(json.dumps(ask(sys.argv[1], json.load(sys.stdin))))
