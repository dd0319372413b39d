"""The options on a run's region, building, prices, failures and checkpoints."""

from dataclasses import dataclass
from datetime import date
from typing import Annotated, Literal

from msgspec import Meta

from tenfold.spec.commands import File
from tenfold.spec.ranges import Nodes, Seconds, Share, Text

Pue = Annotated[float, Meta(ge=1, le=100)]
Wue = Annotated[float, Meta(ge=0, le=1e3)]
Rent = Annotated[float, Meta(ge=0, le=1e6)]
Failures = Annotated[float, Meta(ge=1e-6, le=1e6)]
Storage = Annotated[float, Meta(ge=1e-3, le=1e9)]
Beside = Annotated[float, Meta(ge=1, le=100)]
Interval = Annotated[float, Meta(ge=1, le=1e9)]


@dataclass(frozen=True)
class SiteOptions:
    """Region, building, prices, failures and checkpoints of a run. Paths are hourly profiles (see `plan.workload.profiles`)."""

    region: Annotated[Text, Meta(description="US state of the site, such as TX, or US for the mean.")] = "US"
    pue: Annotated[Pue | None, Meta(description="PUE: energy of the whole building over that of its machines, 1 or more.")] = None
    wue_l_per_kwh: Annotated[
        Wue | None, Meta(description="WUE: litres of water on site per kWh of the machines.", extra={"flag": "--wue"})
    ] = None
    cooling: Annotated[
        Literal["closed", "outside-air", "tower"], Meta(description="Kind of cooling, used together with --weather-epw.")
    ] = "tower"
    clean_share: Annotated[
        Share, Meta(description="Share of the energy (0 to 1) that is matched by contracts for clean power.")
    ] = 0.0
    rent_usd_per_h: Annotated[Rent | None, Meta(description="Rent in USD per GPU-hour, in place of the market's.")] = None
    storage_gb_per_s: Annotated[
        Storage | None, Meta(description="Bandwidth of the storage that checkpoints are written to, in GB/s for all nodes.")
    ] = None
    checkpoint_interval_s: Annotated[
        Interval | None, Meta(description="Seconds between checkpoints, in place of the best interval.")
    ] = None
    per_1000_node_days: Annotated[
        Failures | None, Meta(description="Failures per 1,000 node-days, in place of the published rates.")
    ] = None
    recovery_s: Annotated[Seconds | None, Meta(description="Seconds from a failure until the run computes again.")] = None
    beside_steps: Annotated[
        Beside | None,
        Meta(description="Factor on the time of steps and failures for evaluation, slow starts and the like (1: none)."),
    ] = None
    gpus_per_node: Annotated[Nodes, Meta(description="GPUs in a node; a failure takes out the whole node.")] = 8
    carbon_csv: Annotated[File | None, Meta(description="CSV file with a row per hour: column avg_CI, the grid's g CO2/kWh.")] = (
        None
    )
    price_csv: Annotated[File | None, Meta(description="CSV file with a row per hour: a column of prices in USD/MWh.")] = None
    weather_epw: Annotated[
        File | None, Meta(description="EnergyPlus weather file, from which the water of the cooling is computed by the hour.")
    ] = None
    start: Annotated[date | None, Meta(description="First day of the run (YYYY-MM-DD), for the hourly profiles.")] = None

    @property
    def start_hour(self) -> int | None:
        """The hour of the year at which the run begins, or None."""
        return (self.start.timetuple().tm_yday - 1) * 24 if self.start else None
