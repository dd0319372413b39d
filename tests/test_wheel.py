"""A wheel is built, installed into a fresh virtual environment, and used from another folder."""

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def tenfold(wheel, tmp_path_factory):
    """The command of an environment that has the wheel, and what it needs from the one that runs this test."""
    folder = tmp_path_factory.mktemp("fresh")
    without_path = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps", str(wheel)]
    subprocess.run(pip, env=without_path, check=True, capture_output=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "needed.pth").write_text(sysconfig.get_path("purelib"))

    def call(*words):
        command = [str(python.with_name("tenfold")), *words]
        done = subprocess.run(command, cwd=folder, env=without_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [python, "-c", "import tenfold; print(tenfold.__file__)"], env=without_path, cwd=folder, capture_output=True
    )
    assert Path(where.stdout.decode()).is_relative_to(site)
    return call


def test_all_files_of_the_package_are_in_the_wheel(wheel):
    source = ROOT / "src"
    files = {str(f.relative_to(source)) for f in (source / "tenfold").rglob("*") if f.is_file() and f.suffix != ".pyc"}
    assert {Path(f).suffix for f in files} >= {".jinja", ".html", ".cpp", ".h", ".toml", ".csv", ".typed"}
    with zipfile.ZipFile(wheel) as packed:
        assert files <= set(packed.namelist())


def test_the_installed_command_says_its_version_and_its_commands(tenfold):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert tenfold("--version") == f"tenfold {version}\n"
    assert {"climb", "train", "plan", "serve"} <= set(tenfold("--help").split())


def test_the_installed_command_plans_and_writes_job_files_from_its_own_data(tenfold, tmp_path):
    plan = json.loads(tenfold("plan", "--after", "llama-3.2-1b", "--gpus", "64", "--json", "--out", str(tmp_path)))
    assert plan["machine"]["gpus"] == 64 and 0.1 < plan["step"]["mfu"] < 0.8
    assert (tmp_path / "plan.html").read_text().startswith("<!")
    (tmp_path / "run.toml").write_text("flops = 1e12")
    tenfold("launch", str(tmp_path / "run.toml"), "--on", "slurm", "--nodes", "2", "--out", str(tmp_path))
    assert any(f.read_text().startswith("#!") for f in tmp_path.glob("*.sh"))
