"""What a job file is made for."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from msgspec import Meta


@dataclass(frozen=True)
class Launch:
    """What a job file is made for. On Kubernetes `home` comes from the volume `claim`."""

    run: Path
    nodes: int
    gpus_per_node: Annotated[int, Meta(description="GPUs of a node; 0 trains on its CPU.")] = 8
    least_nodes: Annotated[int | None, Meta(description="Go on with so few when others are lost; by default all.")] = None
    limit: Annotated[str, Meta(description="Time asked of Slurm, hours:minutes:seconds.")] = "24:00:00"
    save_s: Annotated[int, Meta(description="Seconds to save in, before the limit or after SIGTERM.")] = 180
    home: Annotated[str, Meta(description="Where corpora and runs are kept, at the same path on all nodes.")] = "generations"
    partition: Annotated[str | None, Meta(description="Slurm's partition.")] = None
    account: Annotated[str | None, Meta(description="Slurm's account.")] = None
    image: Annotated[str | None, Meta(description="The container image, for Kubernetes.")] = None
    claim: Annotated[str, Meta(description="The volume claim that holds --home, for Kubernetes.")] = "tenfold"
    port: Annotated[int, Meta(description="Port of the first node where all meet; each job on that node needs its own.")] = 29400

    @property
    def name(self) -> str:
        """The run's name as Kubernetes takes it: lower-case letters, digits and hyphens, at most 50."""
        return f"tenfold-{re.sub(r'[^a-z0-9]+', '-', self.run.stem.lower())}"[:50].strip("-")
