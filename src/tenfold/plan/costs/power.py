"""Power and energy of a run: accelerator boards (computing, waiting or idle), hosts, network, and the building."""

from dataclasses import dataclass

from tenfold.plan.facts import facts
from tenfold.plan.ranges import Range
from tenfold.spec.accelerator import Accelerator
from tenfold.spec.errors import TenfoldError


@dataclass(frozen=True)
class Held:
    """The machines held for a run: `gpus` that train and `spare_gpus`, for `wall_hours` with the time lost to failures."""

    accelerator: Accelerator
    gpus: int
    wall_hours: Range | float
    spare_gpus: int = 0
    gpus_per_node: int = 8


@dataclass(frozen=True)
class RunPower:
    """Power and energy. Watts are per running accelerator; megawatts and megawatt-hours are those of the site, with cooling except
    for `it_energy_mwh`. `share_of_year_pct` is the energy in percent of that described by `year`."""

    board_w: Range
    host_w: Range
    network_w: Range
    it_w: Range
    pue: Range
    computing_share: float
    mean_mw: Range
    peak_mw: Range
    it_energy_mwh: Range
    energy_mwh: Range
    parts_mwh: dict[str, Range]
    share_of_year_pct: Range
    year: str


def computing_share(mfu: float, accelerator: Accelerator) -> float:
    """The share of a step in which kernels run, estimated from the MFU alone (0 to 1, bf16).

    Matrix products are taken to run at the best rate measured on the accelerator, and to be a fixed share of the kernels' time.
    """
    table = facts("power")["computing"]
    best = table["best_matrix_share_of_peak"]
    if accelerator.measured_bf16_tflops:
        best = accelerator.measured_bf16_tflops / accelerator.bf16_tflops
    return min(1.0, mfu / best / table["matrix_share_of_kernels"])


def board_w(accelerator: Accelerator, computing: float) -> Range:
    """Mean watts of one board that computes for a share `computing` of the time and otherwise waits.

    Raises TenfoldError for a share outside of 0 to 1, and where the accelerator's board power is not published.
    """
    if not 0 <= computing <= 1:
        raise TenfoldError(f"The share of time spent computing must lie between 0 and 1, not {computing}.")
    if accelerator.tdp_w is None:
        raise TenfoldError(f"{accelerator.name} has no published board power: give --board-w, or choose another accelerator.")
    table = facts("power")["board"]
    computes, waits = (Range.of(table[key], f"board power {key}") for key in ("computing", "waiting"))
    return accelerator.tdp_w * (computes * computing + waits * (1 - computing))


def run_power(held: Held, pue: Range | float, computing: float, effective_share: float = 1.0) -> RunPower:
    """Power and energy of the machines of a run.

    `computing` is the share of a step in which kernels run (the rest is exposed communication and bubble; see
    `computing_share`), `effective_share` the share of wall-clock time in which steps run. Spares are idle.
    """
    table, pue, wall_hours = facts("power"), Range.of(pue), Range.of(held.wall_hours)
    board = board_w(held.accelerator, computing * effective_share)
    tdp = held.accelerator.tdp_w or 0.0
    host = tdp * Range.of(table["host"]["mean"], "host power")
    share = Range.of(table["network"]["share"], "network power")
    network = _network(board + host, share)
    spare = held.spare_gpus * (tdp * Range.of(table["board"]["idle"], "idle board power") + host)
    it_w = board + host + network
    it_mw = 1e-6 * (held.gpus * it_w + spare)
    at_peak = tdp * (Range.of(table["board"]["peak"], "peak board power") + Range.of(table["host"]["peak"], "host power"))
    it_mwh = it_mw * wall_hours
    energy = it_mwh * pue
    mwh = 1e-6 * held.gpus * wall_hours
    return RunPower(
        board_w=board,
        host_w=host,
        network_w=network,
        it_w=it_w,
        pue=pue,
        computing_share=computing * effective_share,
        mean_mw=it_mw * pue,
        peak_mw=1e-6 * (held.gpus * (at_peak + _network(at_peak, share)) + spare) * pue,
        it_energy_mwh=it_mwh,
        energy_mwh=energy,
        parts_mwh={
            "accelerators": board * mwh,
            "hosts": host * mwh,
            "network and storage": network * mwh,
            "spare nodes": 1e-6 * spare * wall_hours,
            "cooling and losses": it_mwh * (pue - 1),
        },
        share_of_year_pct=100 / table["year"]["mwh"] * energy,
        year=table["year"]["what"],
    )


def _network(others: Range, share: Range) -> Range:
    """Watts of the network, whose `share` is that of the sum of itself and the `others`."""
    return others * (share / (1 - share))
