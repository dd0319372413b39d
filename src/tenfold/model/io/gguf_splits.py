"""How text is split before it is tokenized, by the value of `tokenizer.ggml.pre` (llama.cpp, `llama-vocab.cpp`).

The patterns are those of the original tokenizers. llama.cpp's own differ in form, because its regular expressions support neither
scripts nor `(?i:)`.
"""

from typing import Any, NamedTuple

from tokenizers import Regex, pre_tokenizers

from tenfold.spec.vocabulary import LLAMA3_SPLIT, LLAMA4_SPLIT

_END = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN2 = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = LLAMA4_SPLIT.replace(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace(r"\p{N}{1,3}", r"\p{N}")


class Split(NamedTuple):
    """The pre-tokenizers that split text, in order.

    `whole_words`: a word that is a token itself becomes that token, whatever the merges (`ignore_merges`). `add_bos`: llama.cpp's
    default for a file that does not say whether texts begin with bos.
    """

    steps: list[Any]
    whole_words: bool = False
    add_bos: bool = False


def _isolated(*patterns: str) -> list[Any]:
    return [*(pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns), _END]


_DIGITS_APART = Split([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
_PLAIN = Split([pre_tokenizers.ByteLevel(add_prefix_space=False)])
_LLAMA3 = Split(_isolated(LLAMA3_SPLIT), whole_words=True, add_bos=True)
_THREE_DIGITS = Split(_isolated(LLAMA3_SPLIT))
_ONE_DIGIT = Split(_isolated(_QWEN2))
_O200K = Split(_isolated(LLAMA4_SPLIT))

# Several names may have the same split; files are written with the first one.
SPLITS: dict[str, Split] = {
    **dict.fromkeys(("gpt-2", "mpt", "olmo", "phi-2", "jais", "trillion", "exaone4", "granite-docling"), _PLAIN),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS_APART),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "lfm2"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), _THREE_DIGITS),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "grok-2"), _ONE_DIGIT),
    "qwen35": Split(_isolated(_QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"))),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), _O200K),
    "tekken": Split(_isolated(_TEKKEN), whole_words=True, add_bos=True),
    "falcon": Split(_isolated(r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "deepseek-coder": Split(_isolated(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}")),
    "deepseek-v3": Split(
        _isolated(
            r"\p{N}{1,3}",
            "[一-龥\u3040-ゟ゠-ヿ]+",
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
            r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
        )
    ),
}
