"""Train a byte-level BPE tokenizer on a corpus, with `tokenizers`."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tenfold.spec.vocabulary import LLAMA3_SPLIT, Vocabulary

BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
SMALLEST_VOCABULARY = 258  # every byte and the two special tokens


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` tokens: the two special ones first, then every byte, then merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, 0)]
    )
    return tokenizer


def trained_vocabulary(size: int) -> Vocabulary:
    """The vocabulary of a tokenizer of `size` tokens from `train_tokenizer`."""
    return Vocabulary(size=size, bos=0, eos=(1,), add_bos=True, special={BEGIN: 0, END: 1})
