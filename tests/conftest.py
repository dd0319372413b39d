"""A small real corpus: parts of the standard library, made once for all tests."""

import gzip
import os
import shutil
import sysconfig
from pathlib import Path

import hypothesis
import pytest
import torch
from drawings import draw_all

from tenfold.data.text.corpus import build

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several tests run at once
torch.set_num_threads(1)
hypothesis.settings.register_profile("tenfold", deadline=None)  # how long a case takes is no matter of tests
hypothesis.settings.load_profile("tenfold")
LONGEST = (
    "test_circle.py",
    "test_train_parallelize.py",
    "test_scale_climb.py",
    "test_launch_elastic.py",
    "test_train_reshard.py",
    "test_serve_page.py",
)


@pytest.fixture(autouse=True)
def one_thread():
    """Engines set the threads of their process: no test computes with those of the one before."""
    yield
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """The files that take longest begin first, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    stdlib = Path(sysconfig.get_path("stdlib"))
    for name in ("json", "email", "logging", "asyncio", "unittest", "http", "xml", "importlib", "concurrent", "urllib"):
        for file in sorted((stdlib / name).rglob("*.py")):
            target = folder / file.relative_to(stdlib)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    return folder


@pytest.fixture(scope="session")
def corpus(text_folder, tmp_path_factory):
    return build(text_folder, tmp_path_factory.mktemp("corpora") / "small", vocab_size=400, quiet=True)


@pytest.fixture(scope="session")
def drawings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawings")
    draw_all(folder)
    return folder


@pytest.fixture(scope="session")
def hourly(tmp_path_factory):
    """The hourly profiles of `data/hourly`, unpacked."""
    folder = tmp_path_factory.mktemp("hourly")
    for packed in (Path(__file__).parent / "data" / "hourly").glob("*.gz"):
        (folder / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    return folder
