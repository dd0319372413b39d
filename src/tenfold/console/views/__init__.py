"""The console's own views, in the order of its list: one module each."""

from tenfold.console.document import View
from tenfold.console.views import (
    generations,
    run,
)

VIEWS: tuple[View, ...] = (
    generations.VIEW,
    run.VIEW,
)  # fmt: skip
