"""Rankers before users: serve them, judge a policy before anyone sees it, and train on what people did."""

from functools import partial
from pathlib import Path
from typing import Annotated

from msgspec import Meta, structs

from tenfold.rank.serving.settings import WorkerSettings
from tenfold.serve.options import EngineOptions, ServerOptions, name_models
from tenfold.spec.commands import Given

EVENTS = "sqlite:///events.db"
FEEDBACK = "sqlite:///feedback.db"


def serve(
    models: Annotated[list[Path], Meta(description="Rankers, and models of text beside them; the first of each answers.")],
    /,
    *,
    ranking: WorkerSettings = WorkerSettings(),
    engine: Given[EngineOptions],
    server: ServerOptions = ServerOptions(feedback=FEEDBACK, events=EVENTS),
) -> None:
    """POST /v1/recommend, /v1/rank and /v1/events, beside chat where a model of text is given too.

    Examples:

      tenfold rank serve generations/rank-interactions --items items.parquet --explore 0.05

      tenfold rank serve generations/rank-interactions generations/g1

      tenfold rank serve generations/rank-2 generations/rank-1 --experiment interleave
    """
    from tenfold.model.path import model_path
    from tenfold.rank.serving.start import load_with
    from tenfold.serve.api.server import serve as answer
    from tenfold.spec.terminal import console

    named = name_models([model_path(path) for path in models])
    options = {name: EngineOptions(**{**engine, "path": path}) for name, path in named.items()}
    limits = structs.replace(server.limits, max_loaded=max(server.limits.max_loaded, len(options)))
    console().print(f"{', '.join(options)}: lists at http://{server.host}:{server.port}/v1/recommend and /v1/rank")
    answer(options, structs.replace(server, limits=limits), partial(load_with, ranking))
