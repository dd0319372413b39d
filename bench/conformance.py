"""The tests of OpenAI's own Python client, unchanged, against `tenfold serve`.

    pip download --no-deps --no-binary openai openai==$(python -c "import openai; print(openai.__version__)")
    pip install pytest-asyncio respx dirty-equals nest-asyncio aiohttp httpx-aiohttp trio
    python bench/conformance.py openai-*.tar.gz

The source package holds the tests. They run with a model of random weights: what is asked is whether every answer has the
type that the client declares (its strict mode), not what it says. Writes bench/results/conformance.json.
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

from results_file import write_results
from server import serving, small_model

FILES = {
    "chat": "chat/test_completions.py",
    "completions": "test_completions.py",
    "models": "test_models.py",
    "embeddings": "test_embeddings.py",
    "responses": "test_responses.py",
    "input tokens of responses": "responses/test_input_tokens.py",
}


def run(tests: Path, url: str, report: Path, select: str) -> ElementTree.Element:
    """Run the files in the unpacked source; the report of pytest."""
    files = [f"tests/api_resources/{file}" for file in FILES.values()]
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "--tb=line", f"--junitxml={report}", "-n", "0", *files]
    environment = {**os.environ, "TEST_API_BASE_URL": f"{url}/v1"}
    subprocess.run(command + (["-k", select] if select else []), cwd=tests, env=environment, check=False)
    return ElementTree.parse(report).getroot()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="source package of openai")
    parser.add_argument("-k", dest="select", default="", help="only these tests, as pytest selects them")
    parser.add_argument("--url", help="ask this running server, which answers to any model name")
    given = parser.parse_args()
    home = Path(tempfile.mkdtemp())
    with tarfile.open(given.source) as archive:
        archive.extractall(home, filter="data")
    source = next(home.glob("openai-*"))
    options = ("--any-name", "--kv-cache-gib", "0.1", "--threads", "1", "--feedback", f"sqlite:///{home / 'feedback.db'}")
    with contextlib.ExitStack() as stack:
        url = given.url or stack.enter_context(serving(small_model(home / "small", 256), *options, log=home / "log"))[0]
        report = run(source, url, home / "report.xml", given.select)
    counts: dict[str, Counter[str]] = {name: Counter() for name in FILES}
    failed: Counter[str] = Counter()
    for case in report.iter("testcase"):
        name = next(n for n, f in FILES.items() if case.get("classname", "").startswith(_module(f)))
        found = next((k for k in ("failure", "error", "skipped") if case.find(k) is not None), "passed")
        counts[name][found] += 1
        if found in ("failure", "error"):
            failed[re.sub(r"\[.*", "", f"{name}: {case.get('name')}")] += 1
    rows: list[dict[str, Any]] = [
        {"tests": name, "passed": c["passed"], "failed": c["failure"] + c["error"], "skipped": c["skipped"]}
        for name, c in counts.items()
    ]
    rows += [{"failed": name, "clients": count} for name, count in sorted(failed.items())]
    for row in rows:
        print(row)
    if not given.url and "Traceback" in (said := (home / "log").read_text()):
        print(said)
    if not (given.select or given.url):
        write_results("conformance", rows, "python bench/conformance.py " + given.source.name)


def _module(file: str) -> str:
    return "tests.api_resources." + file.removesuffix(".py").replace("/", ".") + "."


if __name__ == "__main__":
    main()
