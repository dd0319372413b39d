"""A tiny model that can chat: random weights, a tokenizer of its own, and a ChatML template."""

import torch
from tokenizers import AddedToken

from tenfold.data.text.tokenizer import train_tokenizer
from tenfold.model.io.huggingface import write_model
from tenfold.model.io.tokenizer import save_tokenizer
from tenfold.model.llama import Llama
from tenfold.model.llama4 import Llama4
from tenfold.spec.model import ModelSpec
from tenfold.spec.vision import IMAGE_TOKENS, PATCH, VisionSpec
from tenfold.spec.vocabulary import Vocabulary

WORDS = (
    "What is 3 + 4? Reply with the number alone. The capital of Peru is Lima. Which number is larger? Hello there, how are you?\n"
)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_model(directory, seed=0, template=TEMPLATE, sees=False, **changes):
    """Its directory, in Hugging Face layout; of one that `sees`, a Llama 4."""
    tokenizer = train_tokenizer([WORDS * 20], 300)
    names = ("<|im_start|>", "<|im_end|>", *(IMAGE_TOKENS if sees else ()))
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    special = {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items()}
    end = special["<|im_end|>"]
    vocabulary = Vocabulary(size=tokenizer.get_vocab_size(), eos=(end,), pad=end, special=special, chat_template=template)
    torch.manual_seed(seed)
    shape = {"dim": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "head_dim": 16, "ffn_dim": 64, "context": 256}
    if sees:
        vision = VisionSpec(16, 4, dim=32, n_layers=1, n_heads=2, adapter_dim=48, patch_token=special[PATCH])
        shape |= {"family": "llama4", "n_layers": 4, "attention_chunk": 32, "nope_every": 4, "vision": vision}
    model = (Llama4 if sees else Llama)(ModelSpec(name="tiny", vocab_size=vocabulary.size, **shape | changes))
    if sees:
        model.vision.projection.weight.data *= 20  # so that what is answered depends on pictures
    write_model(model, directory)
    save_tokenizer(tokenizer, vocabulary, directory)
    return directory


def answers(engine, requests):
    """The outputs of each request, by its id, when the engine has answered all."""
    found = {request.id: [] for request in requests}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for output in engine.step():
            assert output.error is None
            found[output.request_id].append(output)
    return found
