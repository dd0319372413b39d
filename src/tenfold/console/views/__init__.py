"""The console's own views, in the order of its list: one module each."""

from tenfold.console.document import View
from tenfold.console.views import (
    fleet,
    generations,
    plan,
    sites,
)

VIEWS: tuple[View, ...] = (
    generations.VIEW,
    plan.VIEW,
    sites.VIEW,
    fleet.VIEW,
)  # fmt: skip
