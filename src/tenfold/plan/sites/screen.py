"""The answer in the terminal, on one screen."""

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from tenfold.plan.report import usd
from tenfold.plan.sites.answer import named
from tenfold.spec.terminal import Figures

SHOWN = 8  # lines of each part at most


def screen(document: dict[str, Any]) -> RenderableType:
    """What to begin, what waits, costs and values, limits that bind, and the answers to further questions."""
    parts: list[RenderableType] = [Text(f"{document['demand']}: {document['sentence']}", style="bold")]
    parts += [Text(document["ladder"] or "")]
    if document["begin_now"]:
        table = Figures("begin this quarter", "costs", "cost of waiting")
        for one in document["begin_now"]:
            table.add_row(named(one), usd(one["usd"]), usd(one["waiting_usd"]))
        parts += [table, Text()]
    if document["later"]:
        table = Figures("begin later", "first quarter", "chance", "if")
        for one in document["later"][:SHOWN]:
            table.add_row(named(one), f"{one['first_quarter']:g}", f"{100 * one['probability']:.0f} %", one["if"])
        parts += [table, Text()]
    table = Figures("", "USD")
    for name, value in worths(document):
        table.add_row(name, usd(value))
    parts += [table, *(Text(line) for line in binding_lines(document))]
    parts += [Text(one["sentence"]) for one in document["what_if"]]
    if document["pay"]:
        table = Figures("revenue", "worth today", "pays with", "paid back", "cash needed", "cash lasts")
        for one in document["pay"]["scenarios"]:
            table.add_row(*pay_cells(one))
        parts += [Text(), table, *(Text(line) for line in pay_lines(document["pay"]))]
    if document["history"]:
        table = Figures("decided at the end of", "policy", "begins", "cost", "not served")
        for one in document["history"]["decided"]:
            table.add_row(*history_cells(one))
        parts += [Text(), table, *(Text(line) for line in built_lines(document["history"]))]
    if document["backtest"]:
        table = Figures("policy", "mean cost", "CVaR 95", "over staged", "not served")
        for one in document["backtest"]["policies"]:
            over = f"{usd(one['over_staged_usd'])} ± {usd(2 * one['standard_error_usd'])}" if one["policy"] != "staged" else ""
            short = f"{100 * one['short_share']:.1f} %"
            table.add_row(one["policy"], usd(one["mean_usd"]), usd(one["cvar95_usd"]), over, short)
        parts += [Text(f"Back-test on {document['backtest']['futures']} sampled futures outside the tree:"), table]
    return Group(*parts)


def worths(document: dict[str, Any]) -> list[tuple[str, float]]:
    """The costs and values of the plan in USD, with their names."""
    regrets = [path["regret_usd"] for path in document["paths"]]
    return [
        ("expected cost", document["expected_usd"]),
        ("mean of the worst 5 % (CVaR 95)", document["cvar95_usd"]),
        ("expected cost of deciding everything now", document["one_stage_usd"]),
        ("expected cost of building nothing and renting", document["rent_all_usd"]),
        ("value of staging", document["value_of_staging_usd"]),
        ("value of perfect information", document["value_of_perfect_information_usd"]),
        ("value of one more rung of the ladder", document["value_of_one_more_rung_usd"]),
        ("largest regret of a path", max(regrets)),
    ]


def pay_cells(one: dict[str, Any]) -> list[str]:
    """The cells of a revenue scenario: value of the plan, probability that it pays, payback, cash needed, time that cash lasts."""
    back, months = one["payback_quarter"], one["runway_months"]
    return [
        one["revenue"],
        usd(one["value_usd"]),
        f"{100 * one['pays_probability']:.0f} %",
        "not by the end" if back is None else f"quarter {back:.0f}",
        usd(one["cash_needed_usd"]),
        "to the end" if months is None else f"{months:.0f} months",
    ]


def pay_lines(pay: dict[str, Any]) -> list[str]:
    """Sentences on the cost of own and rented machines, by the hour and by the million tokens, and on a published case."""
    own, case = pay["own"], pay["published_case"]
    tokens = [
        f"A million tokens of {kind} cost {one['own']:.2f} USD on own machines, {one['rent']:.2f} on rented ones."
        for kind, one in pay["usd_per_m_tokens"].items()
    ]
    return [
        f"An hour of the reference accelerator costs {own['usd_per_hour']:.2f} USD on an own {own['chip']} in {own['site']}, "
        f"{pay['rent_usd_per_hour']:.2f} USD rented.",
        *tokens,
        f"A company, by published figures, rents for {usd(case['rented_usd_per_year'])} a year: own machines would cost "
        f"{usd(case['own_usd_per_year'])} a year, and {usd(case['capital_usd'])} before the first hour; its cash lasts "
        f"{case['runway_months_renting']:.0f} months when renting, {case['runway_months_owning']:.0f} when owning.",
    ]


def history_cells(one: dict[str, Any]) -> list[str]:
    """The cells of a decision on history, with its cost up to the last year of the table."""
    begins = ", ".join(named(begun) for begun in one["begins"]) or "nothing"
    cost = f"{usd(one['usd'])} until {one['until']}"
    return [str(one["decided"]), one["policy"], begins, cost, f"{100 * one['short_share']:.1f} %"]


def built_lines(history: dict[str, Any]) -> list[str]:
    """Sentences on the electricity and outlays of the owner by year."""
    return [
        f"{history['who']} in {one['year']}: {one['mwh']:,} MWh ({one['mean_mw']:,.0f} MW), all outlays {usd(one['outlays_usd'])}."
        for one in history["built"]
    ]


def binding_lines(document: dict[str, Any]) -> list[str]:
    """A sentence for each limit that binds."""
    return [
        f"The limit {one['limit']} is reached from quarter {one['first_quarter']:g}, "
        f"in up to {100 * one['probability']:.0f} % of futures."
        for one in document["binds"][:SHOWN]
    ]
