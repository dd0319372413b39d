"""The hash by which llama.cpp's own converter recognizes a tokenizer: that of its tokens of one text (`conversion/base.py`)."""

import hashlib
import json
from pathlib import Path

from tenfold.model.io.gguf_vocabulary import pre_of
from tenfold.model.io.tokenizer import read_tokenizer

_TEXT = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n\U0001f680 (normal) \U0001f636\u200d\U0001f32b\ufe0f (multiple emoj"
    "is concatenated) \u2705 \U0001f999\U0001f999 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 \u1780\u17b6"
    "\u1793\u17cb\u178f\u17c2\u1796\u17b7\u179f\u17c1\u179f\u17a2\u17b6\u1785\U0001f601 ?\u6211\u60f3\u5728apple\u5de5"
    "\u4f5c1314151\u5929\uff5e ------======= \u043d\u0435\u0449\u043e \u043d\u0430 \u0411\u044a\u043b\u0433\u0430\u0440"
    "\u0441\u043a\u0438 ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure I'l"
    "l make it, 'D you like some tea? We'Ve a'lL"
)


def llamacpp_hash(directory: Path) -> tuple[str, str | None]:
    """The hash that `get_vocab_base_pre` computes for a directory's tokenizer, and llama.cpp's name for the way it splits text.

    The name is None if llama.cpp has no name for it (`pre_of`).
    """
    tokenizer = read_tokenizer(directory)
    tokens = str(tokenizer.encode(_TEXT).ids)
    return hashlib.sha256(tokens.encode()).hexdigest(), pre_of(json.loads(tokenizer.to_str()))


def converter_note(directory: Path) -> list[str]:
    """A note for users of llama.cpp's converter about a directory, in a list; an empty list where there is nothing to say."""
    found, pre = llamacpp_hash(directory)
    entry = f'if chkhsh == "{found}": res = "{pre}"'
    told = f"llama.cpp's converter reads it; where it does not know the tokenizer, add to its get_vocab_base_pre: {entry}"
    return [told] if pre else []
