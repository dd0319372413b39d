"""Loading of the models of a server, some of which are rankers."""

from functools import partial

from tenfold.rank.serving.settings import WorkerSettings
from tenfold.rank.serving.worker import RankWorker
from tenfold.serve.api.models import load_model
from tenfold.serve.backends.backend import Backend, backend_of, make_backend
from tenfold.serve.options import EngineOptions
from tenfold.serve.text import TextSide
from tenfold.spec.plugins import load


def make_with(ranking: WorkerSettings, options: EngineOptions) -> Backend:
    """A `RankWorker` with these settings for a ranker, and the usual backend for any other model."""
    ranks = load("backends", backend_of(options.path)) is RankWorker
    return RankWorker(options, ranking) if ranks else make_backend(options)


async def load_with(ranking: WorkerSettings, options: EngineOptions) -> tuple[TextSide, Backend]:
    """As `load_model`, with these settings for rankers."""
    return await load_model(options, partial(make_with, ranking))
