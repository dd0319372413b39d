"""The options of a console."""

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from tenfold.serve.options import ServerOptions
from tenfold.spec.commands import File, Folder
from tenfold.spec.ranges import Port, Text


class ConsoleOptions(Struct, frozen=True):
    """Where a console listens, and what it shows beside the home."""

    home: Annotated[Folder, Meta(description="Where the generations are kept.")] = Path("generations")
    host: Annotated[Text, Meta(description="Address to listen on; any but loopback needs keys.")] = "127.0.0.1"
    port: Annotated[Port, Meta(description="Port to listen on.")] = 8765
    server: Annotated[str, Meta(description="URL of a server of `tenfold serve`, for the chat.")] = ""
    fleet: Annotated[Folder | None, Meta(description="Home of the fleet, where it is another.")] = None
    keys: Annotated[File | None, Meta(description="File of keys, made with `tenfold serve-key`.")] = None
    allowed_hosts: Annotated[
        tuple[str, ...], Meta(description="Names that the console answers to, besides localhost and its address; '*' is all.")
    ] = ()
    root_path: Annotated[str, Meta(description="Path under which a proxy shows the console, such as /tenfold.")] = ""
    webhook: Annotated[str, Meta(description="URL that is sent every new alert as JSON.")] = ""

    def listening(self) -> ServerOptions:
        """The same for what a server of the API has as well."""
        return ServerOptions(
            host=self.host, port=self.port, keys=self.keys, allowed_hosts=self.allowed_hosts, access_log="none", drain_seconds=1
        )
