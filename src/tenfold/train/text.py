"""Open the text of a run: one corpus or a mixture, each built from text, opened from disk, or read from an object store."""

from pathlib import Path

from tenfold.data.text.corpus import Corpus, open_corpus
from tenfold.data.text.home import corpus_of_text, in_tokens_of
from tenfold.data.text.mixture import Mixture, make_mixture
from tenfold.data.text.remote import is_remote, open_remote
from tenfold.data.text.sources import is_corpus
from tenfold.model.io.tokenizer import has_tokenizer
from tenfold.spec.errors import TenfoldError
from tenfold.train.config import RunConfig
from tenfold.train.contradictions import refuse


def open_text(config: RunConfig, home: Path, *, quiet: bool = False) -> Corpus | Mixture:
    """The text that `config` trains on, tokenized for the model of `init_from` if there is one. What is built is stored in `home`.

    Raises TenfoldError if `vocab_size` is set but the text already has a tokenizer with another size.
    """
    text = _open(config, home, quiet)
    if text.vocab_size != config.data.vocab_size:
        refuse(config, "data.vocab_size", f"the text has {text.vocab_size} tokens in its vocabulary already")
    return text


def _open(config: RunConfig, home: Path, quiet: bool) -> Corpus | Mixture:
    """One corpus, or a mixture. Without `init_from`, a mixture uses the tokenizer of its first corpus for all."""
    data, start = config.data, Path(config.init_from or "")
    given = start if config.init_from is not None and has_tokenizer(start) else None
    if data.mixture is None:
        return open_source(data.corpus, home, data.vocab_size, data.cache_gib, tokenizer_from=given, quiet=quiet)
    corpora: dict[str, Corpus] = {}
    for source in data.mixture:
        name = source.name or Path(source.corpus).name
        if name in corpora:
            raise TenfoldError(f"The mixture has two corpora named {name!r}: set another name for one of them in [[data.mixture]].")
        corpora[name] = open_source(source.corpus, home, data.vocab_size, data.cache_gib, tokenizer_from=given, quiet=quiet)
        given = given or corpora[name].directory
    weights = {name: source.weight for name, source in zip(corpora, data.mixture, strict=True)}
    return make_mixture(corpora, weights)


def open_source(
    source: str, home: Path, vocab_size: int, cache_gib: float, *, tokenizer_from: Path | None = None, quiet: bool = False
) -> Corpus:
    """The corpus of `source`: a URL in an object store, the folder of a built corpus, or text, from which one is built in `home`.

    A local corpus with another tokenizer than that of `tokenizer_from` is tokenized again with the latter, to a folder in `home`.
    """
    if is_remote(source):
        return open_remote(source, home, round(cache_gib * 2**30))
    if not is_corpus(source):
        return corpus_of_text(source, home, vocab_size, tokenizer_from, quiet=quiet)
    corpus = open_corpus(Path(source))
    return corpus if tokenizer_from is None else in_tokens_of(tokenizer_from, corpus, home, quiet=quiet)
