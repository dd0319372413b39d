"""Where and how a run is held."""

from dataclasses import dataclass
from datetime import date
from typing import Annotated, Literal

from msgspec import Meta

from tenfold.spec.commands import File
from tenfold.spec.ranges import Nodes, Seconds, Share, Text

Pue = Annotated[float, Meta(ge=1, le=100)]
Wue = Annotated[float, Meta(ge=0, le=1e3)]
Rent = Annotated[float, Meta(ge=0, le=1e6)]
Failures = Annotated[float, Meta(ge=0, le=1e6)]
Storage = Annotated[float, Meta(ge=1e-3, le=1e9)]
Beside = Annotated[float, Meta(ge=1, le=100)]
Interval = Annotated[float, Meta(ge=1, le=1e9)]


@dataclass(frozen=True)
class Surroundings:
    """Where and how the run is held. Paths are hourly profiles (see `plan.workload.profiles`)."""

    region: Annotated[Text, Meta(description="A US state, as TX, or US.")] = "US"
    pue: Annotated[Pue | None, Meta(description="Energy of the whole building over that of its machines.")] = None
    wue_l_per_kwh: Annotated[
        Wue | None, Meta(description="Litres of water on site per kWh of the machines.", extra={"flag": "--wue"})
    ] = None
    cooling: Annotated[Literal["closed", "outside-air", "tower"], Meta(description="The kind of cooling, with weather.")] = "tower"
    clean_share: Annotated[Share, Meta(description="Part of the energy matched by clean contracts, 0 to 1.")] = 0.0
    rent_usd_per_h: Annotated[Rent | None, Meta(description="Rent of a GPU for an hour, in place of the market's.")] = None
    storage_gb_per_s: Annotated[Storage | None, Meta(description="What checkpoints are written with, GB/s.")] = None
    checkpoint_interval_s: Annotated[Interval | None, Meta(description="Seconds between checkpoints, in place of the best.")] = None
    per_1000_node_days: Annotated[Failures | None, Meta(description="Failures per 1,000 nodes and day.")] = None
    recovery_s: Annotated[Seconds | None, Meta(description="Seconds from a failure until the run goes on.")] = None
    beside_steps: Annotated[
        Beside | None, Meta(description="What the run takes, over its steps and failures (1: nothing beside them).")
    ] = None
    gpus_per_node: Annotated[Nodes, Meta(description="GPUs of a node, which fail together.")] = 8
    carbon_csv: Annotated[File | None, Meta(description="Hourly grid carbon: a column avg_CI, g CO2/kWh.")] = None
    price_csv: Annotated[File | None, Meta(description="Hourly prices: a column in USD/MWh.")] = None
    weather_epw: Annotated[File | None, Meta(description="Hourly weather, EnergyPlus format: water by wet bulb.")] = None
    start: Annotated[date | None, Meta(description="First day of the run, which places it in the hourly profiles.")] = None

    @property
    def start_hour(self) -> int | None:
        """The hour of the year in which the run begins."""
        return (self.start.timetuple().tm_yday - 1) * 24 if self.start else None
