"""Loads the models of a server of which some are rankers."""

from functools import partial

from tenfold.rank.serving.settings import WorkerSettings
from tenfold.rank.serving.worker import RankWorker
from tenfold.serve.api.models import load_model
from tenfold.serve.backends.backend import Backend, backend_of, make_backend
from tenfold.serve.options import EngineOptions
from tenfold.serve.text import TextSide
from tenfold.spec.plugins import load


def make_with(ranking: WorkerSettings, options: EngineOptions) -> Backend:
    """A ranker's worker with these settings; the backend of any other model."""
    ranks = load("backends", backend_of(options.path)) is RankWorker
    return RankWorker(options, ranking) if ranks else make_backend(options)


async def load_with(ranking: WorkerSettings, options: EngineOptions) -> tuple[TextSide, Backend]:
    """`load_model`, where rankers have these settings."""
    return await load_model(options, partial(make_with, ranking))
