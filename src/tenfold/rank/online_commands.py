"""Commands for rankers in service: serving, batches, off-policy estimates, experiments, and the next ranker from events."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta, Struct, structs

from tenfold.learn.release_commands import RunningServer
from tenfold.rank.commands import TaskOptions
from tenfold.rank.options import RankOptions
from tenfold.rank.serving.settings import RankSettings, WorkerSettings
from tenfold.serve.options import EngineOptions, ServerOptions, name_models
from tenfold.spec.commands import File, Given, Home, Json, print_json
from tenfold.spec.ranges import Count, Share, Text

if TYPE_CHECKING:
    from tenfold.rank.offpolicy.log import Log, Policy

EVENTS = "events.db"
FEEDBACK = "feedback.db"
Model = Annotated[Path, Meta(description="The directory of a run of `tenfold rank train`, or its folder model.")]
Store = Annotated[Text, Meta(description="The event store: the URL of a database, or its SQLite file.")]
Actions = Annotated[tuple[str, ...], Meta(description="Actions that count as taking an item; all where none is given.")]


def serve(
    models: Annotated[list[Path], Meta(description="Rankers, and text models beside them; the first of each kind is the default.")],
    /,
    *,
    ranking: WorkerSettings = WorkerSettings(),
    engine: Given[EngineOptions],
    server: ServerOptions = ServerOptions(feedback=FEEDBACK, events=EVENTS),
) -> None:
    """Serve rankers: POST /v1/recommend, /v1/rank and /v1/events; and chat, where a text model is given, too.

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
    told = f"{', '.join(options)}: lists at http://{server.host}:{server.port}/v1/recommend and /v1/rank"
    console().print(f"{next(iter(options))}: loading")
    answer(options, structs.replace(server, limits=limits), partial(load_with, ranking), on_ready=lambda: console().print(told))


def batch(
    model: Model,
    users: Annotated[
        Text, Meta(description="Interactions: a table of user, item and time, URL#TABLE of a database, or an event store.")
    ],
    /,
    *,
    out: Annotated[File, Meta(description="Parquet file to write.")] = Path("recommendations.parquet"),
    k: Annotated[Count, Meta(description="Items for each user.")] = 10,
    ranking: RankSettings = RankSettings(),
    json: Json = False,
) -> None:
    """Recommend items to every user of a table or event store; writes a table of user, place, item and score.

    Example: tenfold rank batch generations/rank-interactions interactions.parquet --out recommendations.parquet
    """
    from tenfold.rank.batch import recommend_all
    from tenfold.rank.serving.recommender import Recommender

    count = recommend_all(Recommender.load(model, ranking), users, out, k)
    if json:
        print_json({"users": count, "out": str(out)})
    else:
        print(f"{out}: {k} items for each of {count} users.")


def offpolicy(
    log: Annotated[Text, Meta(description="An event store, or a table of item, position, click and propensity_score.")],
    /,
    *,
    policy: Annotated[
        Text, Meta(description="The policy to judge: a ranker; for a table, uniform or a table of item, position and probability.")
    ],
    ranking: RankSettings = RankSettings(),
    lists: Annotated[Count, Meta(description="How many lists of the store are used, the newest first.")] = 20_000,
    actions: Actions = (),
    json: Json = False,
) -> None:
    """Estimate off-policy what another policy would have earned per shown place: IPS, SNIPS and DR, with 95 % intervals.

    Examples:

      tenfold rank offpolicy events.db --policy generations/rank-2 --explore 0.05

      tenfold rank offpolicy bts.csv --policy uniform
    """
    from tenfold.rank.batch import is_event_store
    from tenfold.rank.offpolicy.estimators import effective_rows, estimates
    from tenfold.rank.offpolicy.log import rows_of

    left_out: dict[str, int] = {}
    if is_event_store(log):
        from tenfold.rank.events.store import Events
        from tenfold.rank.offpolicy.served import served_log
        from tenfold.rank.serving.recommender import Recommender

        made, other, left_out = served_log(Events.open(log), Recommender.load(Path(policy), ranking), lists, actions)
    else:
        made, other = _of_table(Path(log), policy)
    rows = rows_of(made, other)
    found, effective = estimates(rows), effective_rows(rows.weight)
    if json:
        values = {name: one._asdict() for name, one in found.items()}
        print_json({"rows": len(rows.reward), "effective_rows": effective, **values, "left_out": dict(left_out)})
        return
    print(f"{len(rows.reward)} shown places; effective sample size {effective:.0f}.")
    for name, one in found.items():
        print(f"  {name:7} {one.value:.4f} (95 %: {one.low:.4f} to {one.high:.4f})")
    for reason, count in left_out.items():
        if count:
            print(f"  left out: {count} lists ({reason})")


def _of_table(log: Path, policy: str) -> "tuple[Log, Policy]":
    from tenfold.rank.offpolicy.log import read_log, table_policy, uniform

    made = read_log(log)
    return made, uniform(made) if policy == "uniform" else table_policy(made, Path(policy))


def experiment(events: Store, /, *, actions: Actions = (), json: Json = False) -> None:
    """Which of two rankers is better, after `tenfold rank serve --experiment`. The result is valid at any time.

    Example: tenfold rank experiment events.db --actions like
    """
    from dataclasses import asdict

    from tenfold.rank.events.store import Events
    from tenfold.rank.experiment import verdicts

    found = verdicts(Events.open(events), actions)
    if json:
        print_json({kind: [{**asdict(one), "rate": one.rate} for one in some] for kind, some in found.items()})
        return
    for kind, some in found.items():
        for one in some:
            (first, second), (rate, low, high) = one.models, one.rate
            print(f"{kind}: {second} wins {one.wins[1]} times, {first} {one.wins[0]}, neither {one.ties}:")
            print(f"  {rate:.1%} (95 %: {low:.1%} to {high:.1%}); p {one.p:.3g}, valid at any time.")
    if not any(found.values()):
        print("The store has no lists of an experiment: serve two rankers with --experiment, and name the user in each request.")


class Source(Struct, frozen=True):
    """What the next ranker is made of."""

    events: Store = EVENTS
    base: Annotated[Text | None, Meta(description="An earlier table of interactions to train on, too.")] = None
    held_out: Annotated[Share, Meta(description="Share of the interactions, the newest ones, that is held out for the gate.")] = 0.1
    model: Annotated[Path | None, Meta(description="The ranker to compare with; by default the one released last.")] = None
    home: Home = Path("generations")


def next_ranker(
    name: Annotated[Text, Meta(description="The name of the next ranker.")],
    /,
    *,
    source: Source = Source(),
    training: RankOptions = RankOptions(),
    task: TaskOptions = TaskOptions(),
    server: RunningServer = RunningServer(),
    json: Json = False,
) -> None:
    """Train the next ranker on the events of users, judge it on the newest ones, and put it in service if it is better.

    Example: tenfold rank next monday --events events.db --base interactions.parquet --server http://127.0.0.1:8000
    """
    from tenfold.rank.next import NEWEST, Next, train_next
    from tenfold.rank.training import train_on

    wanted = Next(name, source.events, source.base, source.held_out, source.model)
    train = partial(train_on, home=source.home, options=training, task=task.table | NEWEST, quiet=json)
    judged = train_next(source.home, wanted, train, server.opened)
    if json:
        print_json(judged)
        return
    for check in judged["checks"]:
        print(f"  {'' if check['passed'] else 'NOT '}{check['name']}: {check['says']}")
    print(f"{'Passed' if judged['passed'] else 'Refused'}. In service: {judged['in_service']}.")


def measure(model: Model, /, *, home: Home = Path("generations"), json: Json = False) -> None:
    """Measure what serving a list costs on this machine; `tenfold plan --serve rank` uses the result.

    Example: tenfold rank measure generations/rank-interactions
    """
    from dataclasses import asdict

    from tenfold.plan.serving.rank import keep_costs
    from tenfold.rank.measure import measure as try_out

    costs = try_out(model)
    file = keep_costs(costs, home)
    if json:
        print_json(asdict(costs))
        return
    print(
        f"{costs.machine}: {1000 * costs.query_core_s:.2f} ms of a core for a list, without reading its history and the catalogue;"
    )
    print(f"  {costs.list_bytes:.0f} bytes in the store for a list, {costs.event_bytes:.0f} for an event. Kept in {file}.")
