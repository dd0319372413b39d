"""Serves models over HTTP."""

from collections.abc import Callable

from msgspec.structs import replace

from tenfold.serve.api.app import make_app
from tenfold.serve.api.listen import check_address, listen
from tenfold.serve.api.models import Loader, Models, load_model
from tenfold.serve.options import EngineOptions, ServerOptions


def serve(
    models: dict[str, EngineOptions], options: ServerOptions, load: Loader = load_model, on_ready: Callable[[], None] = lambda: None
) -> None:
    """Serve `models`, the options of each by name, until SIGTERM or Ctrl-C, then finish the running answers.

    `load` loads a model; `on_ready` is called when the first model can answer. Raises TenfoldError if the server cannot start.
    """
    check_address(options)
    limits = options.limits if options.keys else replace(options.limits, key_share=1.0)
    served = Models(models, limits, options.any_name, load)
    listen(make_app(served, options), options, on_ready, on_exit=served.close)
