"""Write the page of a home."""

from pathlib import Path

from tenfold.spec.commands import Home, Json, print_json


def page(*, home: Home = Path("generations"), json: Json = False) -> None:
    """Write index.html: the circle, the numbers of each part with their files, the forecasts and what came.

    Example: tenfold console --home generations
    """
    from tenfold.console.page import write_page

    path = write_page(home)
    if json:
        print_json({"file": str(path)})
    else:
        print(path)
