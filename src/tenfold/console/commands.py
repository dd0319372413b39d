"""Show a home: generations, runs, plans, fleet and what was learned."""

from typing import Annotated

from msgspec import Meta

from tenfold.console.options import ConsoleOptions
from tenfold.spec.commands import Folder, Json, print_json


def start(
    *,
    options: ConsoleOptions = ConsoleOptions(),
    export: Annotated[
        Folder | None, Meta(description="Write the console as static files into this new folder instead, for any web server.")
    ] = None,
    json: Json = False,
) -> None:
    """Serve a web page over a home: generations and their forecasts, runs as they train, plans, the fleet.

    Examples:

      tenfold console

      tenfold console --home generations --server http://127.0.0.1:8000

      tenfold console --export report
    """
    if export is not None:
        from tenfold.console.export import export as write

        path = write(options.home, export)
        print_json({"folder": str(path)}) if json else print(path / "index.html")
        return
    from tenfold.console.app import make_app
    from tenfold.serve.api.listen import check_address, listen
    from tenfold.spec.terminal import console

    app, listening = make_app(options), options.listening()
    check_address(listening)
    address = f"http://{options.host}:{options.port}/"
    say = (lambda: print_json({"address": address})) if json else (lambda: console().print(f"{options.home}: {address}"))
    listen(app, listening, say, app.state.feeds.close)
