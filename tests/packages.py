"""Packages from outside Tenfold, as pip would have installed them: modules, and entry points in a `dist-info` folder."""

import shutil
import tomllib
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "docs" / "guides" / "plugin"


def install(site, name, modules, entry_points):
    """Put a package in the folder `site`: `modules` by name, and `entry_points` as {group: {name: object}}."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    for module, text in modules.items():
        (site / f"{module}.py").write_text(text)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    groups = ("\n".join([f"[tenfold.{g}]", *(f"{n} = {o}" for n, o in points.items())]) for g, points in entry_points.items())
    (info / "entry_points.txt").write_text("\n\n".join(groups) + "\n")


def install_example(site):
    """Put the package of the guide to plugins in the folder `site`, with the entry points of its own `pyproject.toml`."""
    groups = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"]
    install(site, "tenfold_example", {}, {group.removeprefix("tenfold."): points for group, points in groups.items()})
    shutil.copytree(EXAMPLE / "tenfold_example", site / "tenfold_example")
