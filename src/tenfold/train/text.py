"""The text of a run: one corpus or a mixture, built, opened, or read from a store, as its run file says."""

from pathlib import Path

from tenfold.data.text.corpus import Corpus, build, open_corpus, retokenize
from tenfold.data.text.mixture import Mixture, make_mixture
from tenfold.data.text.remote import is_remote, open_remote
from tenfold.model.io.tokenizer import has_tokenizer, same_tokenizer, tokenizer_hash
from tenfold.spec.errors import TenfoldError
from tenfold.train.config import RunConfig


def open_text(config: RunConfig, home: Path, *, quiet: bool = False) -> Corpus | Mixture:
    """What `config` trains on, kept in `home`, in the tokens of the model that it begins from.

    In a mixture without such a model the first corpus gives the tokenizer to those that are built.
    """
    room = round(config.cache_gib * 2**30)
    start = Path(config.init_from) if config.init_from is not None else None
    model = start if start is not None and has_tokenizer(start) else None
    if config.mixture is None:
        return open_source(config.corpus, home, config.vocab_size, room, tokenizer_from=model, quiet=quiet)
    corpora: dict[str, Corpus] = {}
    first: Path | None = None
    for source in config.mixture:
        name = source.name or Path(source.corpus).name
        if name in corpora:
            raise TenfoldError(f"The mixture has two corpora called {name!r}: give one another name.")
        corpora[name] = open_source(source.corpus, home, config.vocab_size, room, tokenizer_from=model or first, quiet=quiet)
        first = first or corpora[name].directory
    weights = {name: source.weight for name, source in zip(corpora, config.mixture, strict=True)}
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
    """A corpus: at an address of a store, in a folder that holds one, or built from text to a folder of `home`.

    One that has another tokenizer than `tokenizer_from` is written once more in that one's tokens, to a folder of its own.
    """
    name = f"corpus-{Path(source).name}"
    built = home / f"{name}-{vocab_size}"
    if is_remote(source):
        corpus: Corpus | None = open_remote(source, home, cache_bytes)
    elif (Path(source) / "manifest.json").exists():
        corpus = open_corpus(Path(source))
    elif tokenizer_from is None:
        return build(source, built, vocab_size=vocab_size, quiet=quiet)
    else:
        corpus = open_corpus(built) if (built / "manifest.json").exists() else None
    if tokenizer_from is None or (corpus is not None and same_tokenizer(corpus.directory, tokenizer_from)):
        assert corpus is not None
        return corpus
    own = home / f"{name}-{tokenizer_hash(tokenizer_from)[:8]}"
    if corpus is None:
        return build(source, own, tokenizer_from=tokenizer_from, quiet=quiet)
    if corpus.is_remote:
        raise TenfoldError(
            f"{source} has another tokenizer than {tokenizer_from}: build it again with `tenfold data build --tokenizer-from "
            f"{tokenizer_from}` and upload it."
        )
    return retokenize(corpus, own, tokenizer_from, quiet=quiet)
