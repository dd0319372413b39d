"""The multi-stage stochastic program of sites on a scenario tree, as a mixed-integer linear program for HiGHS.

Decisions belong to nodes of the tree, so that all scenarios that share a node share its decisions (non-anticipativity). Whether a
phase has begun by a node is 0 or 1; halls, orders of machines, work, rent and shortage are continuous.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp
from scipy.sparse import coo_array, csr_array, vstack

from tenfold.plan.sites.portfolio import BuildSite, Portfolio
from tenfold.plan.sites.tree import Tree

Prices = tuple[list[list[float]], float, list[list[float]]]
FAILED = 4  # status of `milp`: HiGHS's presolve sometimes fails on a program that has a solution
TAIL = 0.05  # share of the worst outcomes whose mean is the CVaR


@dataclass(frozen=True)
class Aim:
    """The objective: `cvar_share` is the weight of the CVaR, the rest is that of the mean. `gap` is the relative MIP gap.

    With `later_in_part`, phases after the root may begin fractionally: a relaxation for plans of which only the root's decisions
    are used.
    """

    cvar_share: float = 0.0
    gap: float = 1e-3
    later_in_part: bool = False


@dataclass(frozen=True)
class Columns:
    """Column indices of the variables: `begun` [nodes, sites, phases], `halls` [nodes, sites], `ordered` [nodes, sites, chips],
    `work` [nodes, chips, kinds], `rented` and `short` [nodes, kinds]; for the CVaR `level` [1] and `excess` [leaves]."""

    number: int
    begun: np.ndarray
    halls: np.ndarray
    ordered: np.ndarray
    work: np.ndarray
    rented: np.ndarray
    short: np.ndarray
    level: np.ndarray
    excess: np.ndarray

    @classmethod
    def of(cls, p: Portfolio, tree: Tree, staged: bool) -> "Columns":
        """The columns for a portfolio and a tree. Unless `staged`, all nodes of a stage share their decisions."""
        n, s, k, d = len(tree.nodes), len(p.sites), len(p.machines), len(tree.kinds)
        shapes = ((n, s, len(p.sites[0].steps)), (n, s), (n, s, k), (n, k, d), (n, d), (n, d), (1,), (len(tree.leaves),))
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        made = [part.reshape(shape) for part, shape in zip(np.split(np.arange(ends[-1]), ends[:-1]), shapes, strict=True)]
        if not staged:
            quarters = [node.quarter for node in tree.nodes]
            first = [quarters.index(q) for q in quarters]
            made[:3] = [part[first] for part in made[:3]]
        return cls(int(ends[-1]), *made)


@dataclass
class Rows:
    """The sparse rows of `matrix @ x <= upper`, collected one by one."""

    entries: list[tuple[int, int, float]] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)

    def add(self, coefficients: Iterable[tuple[int, float]], upper: float) -> None:
        self.entries += [(len(self.upper), int(column), value) for column, value in coefficients]
        self.upper.append(upper)

    def matrix(self, columns: int) -> csr_array:
        row, column, value = zip(*self.entries, strict=True) if self.entries else ((), (), ())
        return coo_array((value, (row, column)), shape=(len(self.upper), columns)).tocsr()


@dataclass(frozen=True)
class Program:
    """The program: `matrix @ x <= upper`, `low <= x <= high`.

    By node, in millions of dollars and not weighted by its probability, `cost @ x` is the discounted cost, and `spent @ x` are the
    payments for sites, halls and machines.
    """

    columns: Columns
    cost: csr_array
    spent: csr_array
    matrix: csr_array
    upper: np.ndarray
    low: np.ndarray
    high: np.ndarray


def program(p: Portfolio, tree: Tree, staged: bool = True) -> Program:
    """The costs, rows and bounds of the program."""
    columns, rows = Columns.of(p, tree, staged), Rows()
    low, high = np.zeros(columns.number), np.full(columns.number, np.inf)
    high[columns.begun] = 1
    low[columns.level] = -np.inf
    if p.all_served:
        high[columns.short] = 0
    for n, node in enumerate(tree.nodes):
        for k, machine in enumerate(p.machines):
            if node.quarter < machine.from_quarter or node.quarter + machine.lead >= tree.end:
                high[columns.ordered[n, :, k]] = 0
            high[columns.work[n, k, [not hours for hours in machine.hours]]] = 0
        path = tree.path(n)
        for s in range(len(p.sites)):
            _phases(rows, columns, tree, path, (s, p))
            _space(rows, columns, tree, path, (s, p))
        _work(rows, columns, tree, path, p)
        if p.most_tco2 is not None:
            _carbon(rows, columns, tree, path, p)
    spent, matrix, upper = _spent(p, tree, columns), rows.matrix(columns.number), np.array(rows.upper)
    if p.most_usd_m is not None:
        matrix = vstack([matrix, spent])
        upper = np.append(upper, [p.most_usd_m * tree.years(n) for n in range(len(tree.nodes))])
    return Program(columns, _cost(p, tree, columns), spent, matrix, upper, low, high)


def _phases(rows: Rows, columns: Columns, tree: Tree, path: list[int], at: tuple[int, Portfolio]) -> None:
    """A phase that has begun stays begun; it begins only after those before it are ready, and if halls can follow by the end."""
    s, place, hall = at[0], at[1].sites[at[0]], at[1].hall
    names, quarter = [step.name for step in place.steps], tree.nodes[path[0]].quarter
    for f, step in enumerate(place.steps):
        if step.name in place.ready:
            continue  # the phase has begun already: its column is not used
        begun, before = columns.begun[path[0], s, f], [columns.begun[m, s, f] for m in path[1:2]]
        rows.add([*((column, 1.0) for column in before), (begun, -1.0)], 0.0)
        if quarter + place.until_halls(step) + hall.lead >= tree.end:
            rows.add([(begun, 1.0), *((column, -1.0) for column in before)], 0.0)
        for name in step.after:
            ready = _ready(columns, tree, path, (s, place), (names.index(name), quarter))
            if ready is not True:
                rows.add([(begun, 1.0), *([(ready, -1.0)] if ready is not None else [])], 0.0)


def _ready(columns: Columns, tree: Tree, path: list[int], at: tuple[int, BuildSite], phase: tuple[int, float]) -> int | bool | None:
    """The column of the variable that is 1 if a phase is ready at a quarter; True where it is in any case, None where it cannot
    be."""
    (s, place), (f, quarter) = at, phase
    step = place.steps[f]
    if step.name in place.ready:
        return True if place.ready[step.name] <= quarter else None
    early = [m for m in path if tree.nodes[m].quarter + step.lead <= quarter]
    return int(columns.begun[early[0], s, f]) if early else None


def _space(rows: Rows, columns: Columns, tree: Tree, path: list[int], at: tuple[int, Portfolio]) -> None:
    """Halls need a site whose phases are all ready, and machines need ready halls, within the limits of grid and water."""
    s, p = at
    place, node = p.sites[s], tree.nodes[path[0]]
    begun = [(site, mw, ready) for site, mw, ready in p.halls_begun if site == place.name]
    room = place.largest_mw - sum(mw for _, mw, _ in begun)
    built = [(columns.halls[m, s], 1.0) for m in path]
    for f in range(len(place.steps)):
        ready = _ready(columns, tree, path, (s, place), (f, node.quarter))
        if ready is not True:
            rows.add([*built, *([(ready, -room)] if ready is not None else [])], 0.0)
    rows.add(built, max(room, 0.0))
    machines = [(columns.ordered[m, s, k], 1.0) for m, k in _running(p, tree, path)]
    there = sum(one.mw for one in p.standing if one.site == place.name and one.runs(node.quarter))
    halls = [(columns.halls[m, s], -1.0) for m in path if tree.nodes[m].quarter + p.hall.lead <= node.quarter]
    if machines:
        rows.add([*machines, *halls], max(sum(mw for _, mw, ready in begun if ready <= node.quarter) - there, 0.0))
        if place.limit_mw(node.quarter) < place.largest_mw:
            rows.add(machines, max(place.limit_mw(node.quarter) - there, 0.0))
    if path[0] in tree.leaves and len(coming := _coming(p, tree, path)):
        last = [(columns.ordered[m, s, k], 1.0) for m, k, _ in coming]
        halls = [(columns.halls[m, s], -1.0) for m in path if tree.nodes[m].quarter + p.hall.lead < tree.end]
        rows.add([*machines, *last, *halls], max(sum(mw for _, mw, ready in begun if ready < tree.end) - there, 0.0))
        rows.add([*machines, *last], max(place.limit_mw(node.quarter) - there, 0.0))


def _work(rows: Rows, columns: Columns, tree: Tree, path: list[int], p: Portfolio) -> None:
    """Machines work at most their hours; demand that they do not serve is rented or short.

    Machines that arrive during a node work for the share of its time that is left.
    """
    n, node = path[0], tree.nodes[path[0]]
    running = [*((m, k, 1.0) for m, k in _running(p, tree, path)), *_coming(p, tree, path)]
    for k, machine in enumerate(p.machines):
        ordered = [(m, -share * machine.work(tree.nodes[m].quarter)) for m, chip, share in running if chip == k]
        owned = [(column, work) for m, work in ordered for column in columns.ordered[m, :, k]]
        there = sum(one.mw * one.work for one in p.standing if one.chip == machine.name and one.runs(node.quarter))
        rows.add([*((columns.work[n, k, d], 1 / hours) for d, hours in enumerate(machine.hours) if hours), *owned], there)
    for d, hours in enumerate(node.hours):
        served = [*columns.work[n, :, d], columns.rented[n, d], columns.short[n, d]]
        rows.add([(column, -1.0) for column in served], -hours)
    if p.most_rent is not None:
        rows.add([(column, 1.0) for column in columns.rented[n]], p.most_rent)


def _cost(p: Portfolio, tree: Tree, columns: Columns) -> csr_array:
    """The discounted cost of each node's decisions until the end of the tree."""
    rows = Rows()
    for n, node in enumerate(tree.nodes):
        hour, q = tree.years(n) * p.worth(node.quarter) * p.rent(node.quarter), node.quarter
        use = [(column, hour) for column in columns.rented[n]] + [(column, hour * p.shortage_times) for column in columns.short[n]]
        phases = [[p.step_usd(step, q, tree.end) for step in place.steps] for place in p.sites]
        machines = [[p.machine_usd(machine, place, q, tree.end) for machine in p.machines] for place in p.sites]
        rows.add([*use, *_begun(p, tree, columns, n, (phases, p.hall_usd(q, tree.end), machines))], 0.0)
    return rows.matrix(columns.number)


def _spent(p: Portfolio, tree: Tree, columns: Columns) -> csr_array:
    """The payments for sites, halls and machines at each node, in the money of its quarter."""
    rows = Rows()
    phases = [[step.usd_m for step in place.steps] for place in p.sites]
    machines = [[machine.usd_m_per_mw for machine in p.machines]] * len(p.sites)
    for n in range(len(tree.nodes)):
        rows.add(_begun(p, tree, columns, n, (phases, p.hall.usd_m_per_mw, machines)), 0.0)
    return rows.matrix(columns.number)


def _begun(p: Portfolio, tree: Tree, columns: Columns, n: int, prices: Prices) -> list[tuple[int, float]]:
    """The coefficients of what is begun and ordered at a node, with the prices of phases by site, of a MW of halls, and of a MW of
    chips by site."""
    (phases, hall, machines), parent, entries = prices, tree.nodes[n].parent, []
    for s, place in enumerate(p.sites):
        for f, step in enumerate(place.steps):
            if step.name not in place.ready:
                entries.append((columns.begun[n, s, f], phases[s][f]))
                entries += [(columns.begun[parent, s, f], -phases[s][f])] if parent is not None else []
        entries.append((columns.halls[n, s], hall))
        entries += zip(columns.ordered[n, s], machines[s], strict=True)
    return entries


def _carbon(rows: Rows, columns: Columns, tree: Tree, path: list[int], p: Portfolio) -> None:
    """The carbon of all running machines at a node is at most the yearly limit."""
    node, tco2 = tree.nodes[path[0]], {place.name: place.tco2 for place in p.sites}
    there = sum(one.mw * tco2[one.site] for one in p.standing if one.runs(node.quarter))
    running = [(columns.ordered[m, s, k], place.tco2) for m, k in _running(p, tree, path) for s, place in enumerate(p.sites)]
    rows.add(running, (p.most_tco2 or 0.0) - there)


def _running(p: Portfolio, tree: Tree, path: list[int]) -> list[tuple[int, int]]:
    """The pairs (node of the path, chip) whose orders run at the path's last node."""
    quarter = tree.nodes[path[0]].quarter
    return [(m, k) for m in path for k, machine in enumerate(p.machines) if machine.runs(tree.nodes[m].quarter, quarter)]


def _coming(p: Portfolio, tree: Tree, path: list[int]) -> list[tuple[int, int, float]]:
    """(node of the path, chip, share of the last node's time) of the orders that arrive during the last node, with halls begun at
    the same time, and run for that share."""
    start, years = tree.nodes[path[0]].quarter, tree.years(path[0])
    found = []
    for m in path:
        for k, machine in enumerate(p.machines):
            ordered = tree.nodes[m].quarter
            ready = ordered + max(machine.lead, p.hall.lead)
            if ordered + machine.lead > start and ready < start + 4 * years:
                found.append((m, k, 1 - (ready - start) / 4 / years))
    return found


def least(made: Program, tree: Tree, aim: Aim) -> OptimizeResult:
    """Minimise the objective of `aim`, with the CVaR as in Rockafellar and Uryasev (2000)."""
    columns, share = made.columns, aim.cvar_share
    weights = np.array([tree.probability(n) for n in range(len(tree.nodes))])
    objective = (1 - share) * (weights @ made.cost)
    matrix, upper, high = made.matrix, made.upper, made.high.copy()
    if share:
        leaves = tree.leaves
        objective[columns.level] += share
        objective[columns.excess] += share / TAIL * weights[leaves]
        matrix = vstack([matrix, _tail(made, tree)])
        upper = np.append(upper, np.zeros(len(leaves)))
    else:
        high[columns.excess] = 0
    integrality = np.zeros(columns.number)
    whole = columns.begun[0] if aim.later_in_part else columns.begun
    integrality[whole] = 1
    for presolve in (True, False):
        found = milp(
            objective,
            integrality=integrality,
            bounds=Bounds(made.low, high),
            constraints=LinearConstraint(matrix, ub=upper),
            options={"mip_rel_gap": aim.gap, "presolve": presolve},
        )
        if found.status != FAILED:
            break
    if found.x is not None:
        found.x[whole] = np.round(found.x[whole])
    return found


def _tail(made: Program, tree: Tree) -> csr_array:
    """Rows that bound the cost of each path by the CVaR's level plus the leaf's excess."""
    rows, onto = Rows(), np.zeros((len(tree.leaves), len(tree.nodes)))
    for i, leaf in enumerate(tree.leaves):
        rows.add([(made.columns.level[0], -1.0), (made.columns.excess[i], -1.0)], 0.0)
        onto[i, tree.path(leaf)] = 1
    return rows.matrix(made.columns.number) + csr_array(onto) @ made.cost
