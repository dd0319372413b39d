"""The corpora in a home: each is made once, and found again by the content of its text and its tokenizer."""

from pathlib import Path

from tenfold.data.fingerprint import folder_of, known_in
from tenfold.data.text.corpus import Corpus, build, open_corpus, retokenize, retokenized_recipe, text_recipe
from tenfold.data.text.options import TextOptions
from tenfold.model.io.tokenizer import read_vocabulary, same_tokenizer, tokenizer_hash


def corpus_of_text(source: str, home: Path, vocab_size: int, tokenizer_from: Path | None = None, *, quiet: bool = False) -> Corpus:
    """The corpus of a text, with a tokenizer of `vocab_size` tokens trained on it, or with that of `tokenizer_from`.

    It is made in `corpus-NAME-VOCAB`, or, if another corpus has this name, in a folder whose name ends in a hash.
    """
    name = _name(source)
    text, _ = text_recipe(source, TextOptions(), known_in(home, name), quiet)
    size = vocab_size if tokenizer_from is None else read_vocabulary(tokenizer_from).size
    trained = folder_of(home, f"{name}-{size}", text | {"tokenizer": size})
    if tokenizer_from is None:
        return open_corpus(trained) if trained.exists() else build(source, trained, vocab_size=size, quiet=quiet)
    if trained.exists():
        return in_tokens_of(tokenizer_from, open_corpus(trained), home, name, quiet=quiet)
    mark = tokenizer_hash(tokenizer_from)
    out = folder_of(home, f"{name}-{mark[:8]}", text | {"tokenizer": mark})
    return open_corpus(out) if out.exists() else build(source, out, tokenizer_from=tokenizer_from, quiet=quiet)


def in_tokens_of(tokenizer_from: Path, corpus: Corpus, home: Path, name: str = "", *, quiet: bool = False) -> Corpus:
    """The corpus itself if it has this tokenizer; else a copy in the tokens of `tokenizer_from`, in a folder of `home`."""
    if same_tokenizer(corpus.directory, tokenizer_from):
        return corpus
    recipe = retokenized_recipe(corpus, tokenizer_from)
    name = name or _name(str(corpus.directory))
    return retokenize(corpus, folder_of(home, f"{name}-{recipe['tokenizer'][:8]}", recipe), tokenizer_from, quiet=quiet)


def _name(source: str) -> str:
    return f"corpus-{Path(source).resolve().name or 'text'}"
