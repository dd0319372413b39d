"""Run other projects' own tests, unchanged, against `tenfold serve`: those of OpenAI's Python client, and of llama.cpp's server.

    make nightly                            # downloads the source packages with the tests, and installs what they need
    python -m bench.serve.conformance

`bench/serve/left_out.py` lists the tests that are left out or fail by intent, by reason.
"""

import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from bench.harness import ROOT, Row, options, write_results
from bench.serve.left_out import OPENAI
from bench.serve.server import SMALL_OPTIONS, serving, small_model


class Case(NamedTuple):
    """A test and its result."""

    file: str
    name: str
    passed: bool
    left_out: str  # why it was not run; empty if it was


def main() -> None:
    options(__doc__).parse_args()
    with TemporaryDirectory() as home:
        folder = Path(home)
        model = small_model(folder / "small", 256)
        with serving(model, *SMALL_OPTIONS, "--feedback", f"sqlite:///{folder / 'feedback.db'}") as (url, _):
            clients = openai_cases(url, folder)
        servers = llama_cpp_cases(folder)
    rows = [*summary("OpenAI's client", clients), *summary("llama.cpp's server", servers)]
    headline = [
        ("tests of OpenAI's own client that pass", f"{sum(c.passed for c in clients)} of {len(clients)}"),
        ("tests of llama.cpp's server that pass, of those not left out", f"{sum(c.passed for c in servers)} of {_asked(servers)}"),
    ]
    print(write_results("conformance", rows, headline))


def _asked(cases: Sequence[Case]) -> int:
    return sum(not case.left_out for case in cases)


def summary(suite: str, cases: Sequence[Case]) -> Iterator[Row]:
    """How many tests of each file passed, which failed, and how many are left out for each reason."""
    for file in dict.fromkeys(case.file for case in cases):
        asked = [case for case in cases if case.file == file and not case.left_out]
        if asked:
            yield {
                "suite": suite,
                "tests": file,
                "passed": sum(c.passed for c in asked),
                "failed": sum(not c.passed for c in asked),
            }
    failed = Counter(f"{case.file}: {case.name.split('[')[0]}" for case in cases if not case.passed and not case.left_out)
    yield from ({"suite": suite, "failed": name, "times": times} for name, times in failed.items())
    reasons = Counter(case.left_out for case in cases if case.left_out)
    yield from ({"suite": suite, "left out": reason, "times": times} for reason, times in reasons.items())


def source(package: str) -> Path | None:
    """The newest source package in `build`; None if there is none."""
    return max((ROOT / "build" / package).glob("*.tar.gz"), default=None)


def openai_cases(url: str, folder: Path) -> list[Case]:
    """Results of the client's tests for the resources that `tenfold serve` has."""
    package = _unpacked("openai", folder)
    files = [f"tests/api_resources/{file}" for file in OPENAI]
    return _run(package, ["-n", "0", *files], {"TEST_API_BASE_URL": f"{url}/v1"})


def llama_cpp_cases(folder: Path) -> list[Case]:
    """Results of all tests, with those that are left out."""
    server = "vendor/llama.cpp/tools/server/tests"
    tests = _unpacked("llama_cpp_python", folder, server, "vendor/llama.cpp/models/templates") / server
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return _run(tests, ["-p", "bench.serve.llama_cpp", "unit"], {"PYTHONPATH": path})


def _unpacked(package: str, folder: Path, *parts: str) -> Path:
    """Unpack a source package, or parts of it. Raises SystemExit if the package is not in `build`."""
    archive = source(package)
    if archive is None:
        raise SystemExit(f"The source package of {package} is not in build/{package}: run `make nightly`.")
    with tarfile.open(archive) as packed:
        wanted = [member for member in packed if member.name.partition("/")[2].startswith(parts or ("",))]
        packed.extractall(folder, wanted, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def _run(folder: Path, arguments: Sequence[str], environment: dict[str, str]) -> list[Case]:
    """Run pytest in a folder; the results of its tests."""
    report = folder / "report.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
        "-q",
        "--tb=short",
        f"--junitxml={report}",
    ]
    subprocess.run([*command, *arguments], cwd=folder, env=os.environ | environment, check=False)
    return read_report(report)


def read_report(report: Path) -> list[Case]:
    """The results in a JUnit XML report."""
    return [_case(case) for case in ElementTree.parse(report).iter("testcase")]


def _case(case: ElementTree.Element) -> Case:
    skipped = case.find("skipped")
    failed = any(case.find(kind) is not None for kind in ("failure", "error"))
    left_out = "" if skipped is None else skipped.get("message", "") or "skipped"
    return Case(case.get("classname", ""), case.get("name", ""), not failed and skipped is None, left_out)


if __name__ == "__main__":
    main()
