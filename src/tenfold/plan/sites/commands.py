"""`tenfold plan sites`."""

from pathlib import Path

from tenfold.spec.commands import Home, Json, print_json


def sites(*, home: Home = Path("generations"), json: Json = False) -> None:
    """Which sites to begin this quarter, before demand is known, and what deciding in stages is worth.

    Two published sites and a demand tree of seven nodes around the newest plan in the home. Nothing is written.

    Example: tenfold plan sites --json
    """
    from tenfold.plan.sites.walk import home_tree, solved
    from tenfold.spec.terminal import Figures, console

    tree, plan = home_tree(home)
    found = solved(tree)
    if json:
        print_json({**found, "plan": plan})
        return
    table = Figures("stage", "node", "probability", "demand, MW", "own, MW", "rented, MW", "begun")
    blocks = [*found["begin_now"], *found["begin_later"]]
    for index, node in enumerate(found["nodes"]):
        begun = ", ".join(f"{block['mw']:,.0f} MW in {block['site']}" for block in blocks if block["node"] == node["name"])
        figures = (node["demand_mw"], sum(node["running_mw"].values()), node["unmet_mw"])
        table.add_row(str(node["stage"]), node["name"], f"{tree.probability(index):.2g}", *(f"{f:,.0f}" for f in figures), begun)
    out = console()
    out.print(table)
    out.print(f"{plan or 'Built-in demand'}: {found['sentence']}")
