"""The options of a console."""

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from tenfold.serve.options import ServerOptions
from tenfold.spec.commands import File, Folder
from tenfold.spec.ranges import Port, Text


class ConsoleOptions(Struct, frozen=True):
    """Where the console listens, and what it shows in addition to the home."""

    home: Annotated[Folder, Meta(description="Directory of the generations.")] = Path("generations")
    host: Annotated[Text, Meta(description="Address to listen on; any other than loopback needs --keys.")] = "127.0.0.1"
    port: Annotated[Port, Meta(description="Port to listen on.")] = 8765
    server: Annotated[str, Meta(description="URL of a `tenfold serve` server, for the chat, releases and rollbacks.")] = ""
    fleet: Annotated[Folder | None, Meta(description="Home of the fleet, if it is another than --home.")] = None
    keys: Annotated[
        File | None, Meta(description="File of keys, made by `tenfold serve-key`; without it everybody is an operator.")
    ] = None
    allowed_hosts: Annotated[
        tuple[str, ...], Meta(description="Host names that requests may use, besides localhost and the address; '*' allows all.")
    ] = ()
    root_path: Annotated[str, Meta(description="Path prefix under which a proxy shows the console, such as /tenfold.")] = ""
    webhook: Annotated[str, Meta(description="URL to which every new alert is posted as JSON.")] = ""

    def listening(self) -> ServerOptions:
        """The options that the console shares with `tenfold serve`."""
        return ServerOptions(
            host=self.host, port=self.port, keys=self.keys, allowed_hosts=self.allowed_hosts, access_log="none", drain_seconds=1
        )
