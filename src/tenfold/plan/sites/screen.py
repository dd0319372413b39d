"""The answer on one screen."""

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from tenfold.plan.report import usd
from tenfold.plan.sites.answer import named
from tenfold.spec.terminal import Figures

SHOWN = 8  # lines of each part


def screen(document: dict[str, Any]) -> RenderableType:
    """What to begin, what waits, what it is worth, what binds."""
    parts: list[RenderableType] = [Text(f"{document['demand']}: {document['sentence']}", style="bold"), Text()]
    if document["begin_now"]:
        table = Figures("begin this quarter", "costs", "not to would cost")
        for one in document["begin_now"]:
            table.add_row(named(one), usd(one["usd"]), usd(one["waiting_usd"]))
        parts += [table, Text()]
    if document["later"]:
        table = Figures("waits", "first quarter", "chance", "begins if")
        for one in document["later"][:SHOWN]:
            table.add_row(named(one), f"{one['first_quarter']:g}", f"{100 * one['probability']:.0f} %", one["if"])
        parts += [table, Text()]
    table = Figures("", "USD")
    for name, value in worths(document):
        table.add_row(name, usd(value))
    parts += [table, *(Text(line) for line in binding_lines(document))]
    parts += [Text(one["sentence"]) for one in document["what_if"]]
    if document["backtest"]:
        table = Figures("policy", "mean cost", "CVaR 95", "over staged", "not served")
        for one in document["backtest"]["policies"]:
            over = f"{usd(one['over_staged_usd'])} ± {usd(2 * one['standard_error_usd'])}" if one["policy"] != "staged" else ""
            short = f"{100 * one['short_share']:.1f} %"
            table.add_row(one["policy"], usd(one["mean_usd"]), usd(one["cvar95_usd"]), over, short)
        parts += [Text(f"On {document['backtest']['futures']} futures outside the tree:"), table]
    return Group(*parts)


def worths(document: dict[str, Any]) -> list[tuple[str, float]]:
    """The figures of money with their names."""
    regrets = [path["regret_usd"] for path in document["paths"]]
    return [
        ("expected cost", document["expected_usd"]),
        ("mean of the worst 5 % (CVaR 95)", document["cvar95_usd"]),
        ("cost of deciding all now", document["one_stage_usd"]),
        ("cost of renting all that is missing", document["rent_all_usd"]),
        ("value of staging", document["value_of_staging_usd"]),
        ("value of perfect information", document["value_of_perfect_information_usd"]),
        ("value of one more rung of the ladder", document["value_of_one_more_rung_usd"]),
        ("largest regret of a path", max(regrets)),
    ]


def binding_lines(document: dict[str, Any]) -> list[str]:
    """Which limits bind, each in a line."""
    return [
        f"The limit {one['limit']} is reached from quarter {one['first_quarter']:g}, "
        f"in up to {100 * one['probability']:.0f} % of futures."
        for one in document["binds"][:SHOWN]
    ]
