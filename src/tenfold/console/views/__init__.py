"""The console's own views, one module each, in the order of the navigation."""

from tenfold.console.document import View
from tenfold.console.views import (
    chat,
    feedback,
    fleet,
    generations,
    learn,
    plan,
    rank,
    recommendations,
    run,
    sites,
)

VIEWS: tuple[View, ...] = (
    generations.VIEW,
    run.VIEW,
    plan.VIEW,
    sites.VIEW,
    fleet.VIEW,
    learn.VIEW,
    feedback.VIEW,
    rank.VIEW,
    recommendations.VIEW,
    chat.VIEW,
)  # fmt: skip
