"""The options of a front, beside those of any server."""

from typing import Annotated

from msgspec import Meta, Struct

from tenfold.spec.ranges import Seconds

Factor = Annotated[float, Meta(ge=1, le=1e6)]
Period = Annotated[float, Meta(gt=0, le=1e6)]


class FrontOptions(Struct, frozen=True):
    """How replicas are chosen and watched. Times are in seconds."""

    affinity: Annotated[bool, Meta(description="Send a conversation where its beginning went before, while there is room.")] = True
    load_factor: Annotated[
        Factor,
        Meta(description="Requests under way, in means over all replicas, up to which a replica has room for its conversations."),
    ] = 1.25
    check_every: Annotated[Period, Meta(description="Seconds between checks of a replica's health.")] = 1.0
    check_timeout: Annotated[
        Period, Meta(description="Seconds until a check has failed; after three in a row a replica is left out.")
    ] = 5.0
    forsaken_after: Annotated[
        Seconds, Meta(description="Seconds without any replica that is well after which the front ends; 0 is never.")
    ] = 0.0
