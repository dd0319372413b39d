"""The options of a front, in addition to those of any server."""

from typing import Annotated

from msgspec import Meta, Struct

from tenfold.spec.ranges import Seconds

Factor = Annotated[float, Meta(ge=1, le=1e6)]
Period = Annotated[float, Meta(gt=0, le=1e6)]


class FrontOptions(Struct, frozen=True):
    """How replicas are chosen and checked. Times are in seconds."""

    affinity: Annotated[
        bool,
        Meta(
            description="Send the requests of a conversation to the same replica, for its prefix cache, unless that is overloaded."
        ),
    ] = True
    load_factor: Annotated[
        Factor,
        Meta(
            description="Load at which a replica counts as overloaded: its requests under way, relative to the mean over replicas."
        ),
    ] = 1.25
    check_every: Annotated[Period, Meta(description="Seconds between health checks of a replica.")] = 1.0
    check_timeout: Annotated[
        Period, Meta(description="Timeout of a health check in seconds; after three failures in a row a replica gets no requests.")
    ] = 5.0
    forsaken_after: Annotated[
        Seconds, Meta(description="Seconds without a healthy replica after which the front ends; 0 is never.")
    ] = 0.0
