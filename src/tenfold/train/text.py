"""The text of a run: one corpus or a mixture, built, opened, or read from a store, as its run file says."""

import hashlib
from pathlib import Path

from tenfold.data.text.corpus import Corpus, build, open_corpus
from tenfold.data.text.mixture import Mixture, make_mixture
from tenfold.data.text.remote import is_remote, open_remote
from tenfold.spec.errors import TenfoldError
from tenfold.train.config import RunConfig


def open_text(config: RunConfig, home: Path, *, quiet: bool = False) -> Corpus | Mixture:
    """What `config` trains on, kept in `home`. In a mixture the first corpus gives the tokenizer to those that are built."""
    room = round(config.data.cache_gib * 2**30)
    if config.data.mixture is None:
        return open_source(config.data.corpus, home, config.data.vocab_size, room, quiet=quiet)
    corpora: dict[str, Corpus] = {}
    first: Path | None = None
    for source in config.data.mixture:
        name = source.name or Path(source.corpus).name
        if name in corpora:
            raise TenfoldError(f"The mixture has two corpora called {name!r}: give one another name.")
        corpora[name] = open_source(source.corpus, home, config.data.vocab_size, room, tokenizer_from=first, quiet=quiet)
        first = first or corpora[name].directory
    weights = {name: source.weight for name, source in zip(corpora, config.data.mixture, strict=True)}
    return make_mixture(corpora, weights)


def open_source(
    source: str,
    home: Path,
    vocab_size: int,
    cache_bytes: int,
    *,
    tokenizer_from: Path | None = None,
    quiet: bool = False,
) -> Corpus:
    """A corpus: at an address of a store, in a folder that holds one, or built from text to a folder of `home`."""
    if is_remote(source):
        return open_remote(source, home, cache_bytes)
    if (Path(source) / "manifest.json").exists():
        return open_corpus(Path(source))
    name = f"corpus-{Path(source).name}-{vocab_size}"
    if tokenizer_from is not None:
        name += "-" + hashlib.sha256((tokenizer_from / "tokenizer.json").read_bytes()).hexdigest()[:8]
    return build(source, home / name, vocab_size=vocab_size, tokenizer_from=tokenizer_from, quiet=quiet)
