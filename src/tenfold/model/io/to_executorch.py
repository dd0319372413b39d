"""Lower a model to an ExecuTorch program and run it, in a separate process: `python -m tenfold.model.io.to_executorch`.

Standard input is a `Job` as JSON. ExecuTorch's own Llama export, which reads Meta's layout, writes the program, so that
ExecuTorch's runners for Android and iOS can load it. The program is then run token by token, and its log-probabilities are saved.
"""

import json
import sys
from pathlib import Path

import msgspec
import torch
from torch import Tensor


class Job(msgspec.Struct):
    """What to export and run.

    `meta` is a model's folder in Meta's layout, `program` the file to write, `kind` "f32" or "8da4w", `context` the cache's size
    in tokens. The program is run on `texts` (token ids); the file `answers` receives its log-probabilities, a list of tensors
    [tokens, vocab], one for each text.
    """

    meta: str
    program: str
    kind: str
    context: int
    metadata: dict[str, int | list[int]]
    texts: list[list[int]]
    answers: str


def lower(job: Job) -> None:
    """Write the program, for XNNPACK and with a key-value cache."""
    from executorch.examples.models.llama.export_llama_lib import export_llama
    from executorch.extension.llm.export.config.llm_config import LlmConfig, ModelType

    config = LlmConfig()
    config.base.model_class = ModelType.llama3
    config.base.checkpoint, config.base.params = f"{job.meta}/consolidated.00.pth", f"{job.meta}/params.json"
    config.base.metadata = json.dumps(job.metadata)
    config.model.use_kv_cache = config.model.use_sdpa_with_kv_cache = True
    config.export.max_seq_length = config.export.max_context_length = job.context
    config.export.output_name = job.program
    config.backend.xnnpack.enabled = config.backend.xnnpack.extended_ops = True
    if job.kind == "8da4w":
        config.quantization.qmode, config.quantization.group_size = "8da4w", 32
        config.quantization.embedding_quantize = "8,0"
    export_llama(config)


def ask(job: Job) -> list[Tensor]:
    """Log-probabilities of the next token after each token of each text, float32 [tokens, vocab]."""
    import executorch.extension.llm.custom_ops.custom_ops  # the attention that the program calls
    import executorch.kernels.quantized  # noqa: F401 (the embedding that it calls)
    from executorch.runtime import Runtime

    found = []
    for tokens in job.texts:
        method = Runtime.get().load_program(Path(job.program)).load_method("forward")  # with an empty cache
        assert method is not None
        said = [method.execute([torch.tensor([[token]]), torch.tensor([at])])[0].flatten() for at, token in enumerate(tokens)]
        found.append(torch.stack(said).float().log_softmax(-1))
    return found


if __name__ == "__main__":
    given = msgspec.json.decode(sys.stdin.read(), type=Job)
    lower(given)
    torch.save(ask(given), given.answers)
