"""Refuse a run whose settings contradict each other, or have no effect because of another setting."""

from collections.abc import Callable
from functools import reduce
from typing import Any

from msgspec import Struct

from tenfold.spec.errors import TenfoldError
from tenfold.spec.ranges import as_key, shown
from tenfold.train.config import RunConfig, defaults

Holds = Callable[[RunConfig], bool]


def gives_model_size(config: RunConfig) -> bool:
    """Whether the run file itself determines the size of the model, so that no scaling law is needed."""
    fields = config.model if isinstance(config.model, dict) else {}
    return isinstance(config.model, str) or config.init_from is not None or bool(fields.keys() - {"family", "vision"})


def _reads_object_store(config: RunConfig) -> bool:
    sources = [config.data.corpus] if config.data.mixture is None else [one.corpus for one in config.data.mixture]
    return any("://" in source for source in sources)


CONTRADICTIONS: dict[str, Holds] = {
    "must give flops or tokens": lambda c: c.flops is None and c.tokens is None,
    "gives both flops and tokens: keep one, the other follows from the model": lambda c: None not in (c.flops, c.tokens),
    "gives both a mixture and images: keep one": lambda c: None not in (c.data.mixture, c.data.images),
    "gives both model and init_from: keep one, because the stored weights determine the model": (
        lambda c: None not in (c.model, c.init_from)
    ),
    "gives warmup and decay in [optimizer] that add up to more than the whole run: lower one of them": (
        lambda c: c.optimizer.schedule == "wsd" and c.optimizer.warmup + c.optimizer.decay > 1 + 1e-9
    ),
    "describes an image encoder (vision) but names no images: add images to [data], or leave vision out": (
        lambda c: isinstance(c.model, dict) and "vision" in c.model and c.data.images is None
    ),
}

# Settings that have no effect under a condition: the condition in words, and as a function.
IDLE: dict[str, tuple[str, Holds]] = {
    "law": ("the model or the tokens are given", lambda c: c.flops is None or gives_model_size(c)),
    "data.corpus": ("a mixture is given", lambda c: c.data.mixture is not None),
    "data.image_share": ("no images are given", lambda c: c.data.images is None),
    "data.cache_gib": ("no corpus is in an object store", lambda c: not _reads_object_store(c)),
    "optimizer.decay": ('schedule is "cosine"', lambda c: c.optimizer.schedule == "cosine"),
    "parallel.schedule": ("pp is 1", lambda c: c.parallel != "auto" and c.parallel.pp == 1),
    "parallel.virtual_stages": ("pp is 1", lambda c: c.parallel != "auto" and c.parallel.pp == 1),
}


def check(config: RunConfig, where: str) -> None:
    """Raises TenfoldError for the first contradiction or setting without effect; `where` names the run file in the message."""
    for sentence, holds in CONTRADICTIONS.items():
        if holds(config):
            raise TenfoldError(f"{where} {sentence}.")
    for key, (why, holds) in IDLE.items():
        if holds(config):
            refuse(config, key, why, where)


def refuse(table: Struct, key: str, why: str, where: str = "The run") -> None:
    """Raises TenfoldError if the setting `key` of `table`, which has no effect where `why`, differs from its default."""
    value = _at(table, key)
    if value != _default(type(table), key):
        raise TenfoldError(f"{where} gives {as_key(key)}, {shown(value)}, which has no effect where {why}: leave one of them out.")


def _default(table: type[Struct], key: str) -> Any:
    first, _, rest = key.partition(".")
    default = defaults(table)[first]
    return _at(default, rest) if rest else default


def _at(table: Struct, key: str) -> Any:
    return reduce(getattr, key.split("."), table)
