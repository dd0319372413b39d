"""Schemathesis on the server's own OpenAPI document: requests that fit it and requests that do not.

    pip install schemathesis
    python bench/openapi.py
    python bench/openapi.py --examples 5 --dry      # a try

No request may be answered with a status of 500 or above, and every answer must have a status, a type of content and a body
that the document promises. Whether a request that fits the document is accepted, and one that does not refused, is not asked:
a prompt may fit and be longer than the context, and numbers in quotes are read as numbers. The model is small, its weights
random. Writes bench/results/openapi.json: a row an operation.
"""

import argparse
import subprocess
import sys
import tempfile
import urllib.request
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from results_file import write_results
from server import serving, small_model

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "unsupported_method", "allow_header_conformance",
)  # fmt: skip


def run(url: str, report: Path, mode: str, examples: int, seed: int) -> subprocess.CompletedProcess[str]:
    """Run schemathesis on the server at `url`; `report` becomes its JUnit file."""
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json", "--checks", ",".join(CHECKS),
        "--mode", mode, "--max-examples", str(examples), "--seed", str(seed), "--generation-database", "none",
        "--continue-on-failure", "--suppress-health-check", "all", "--warnings", "off", "--no-color",
        "--request-timeout", "120", "--report-junit-path", str(report),
    ]  # fmt: skip
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=50, help="of each operation, in each mode and phase")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dry", action="store_true", help="write nothing")
    given = parser.parse_args()
    home = Path(tempfile.mkdtemp())
    options = ("--kv-cache-gib", "0.02", "--threads", "1", "--any-name", "--feedback", f"sqlite:///{home / 'feedback.db'}")
    rows: list[dict[str, Any]] = []
    with serving(small_model(home / "small", 128), *options, log=home / "log") as (url, process):
        urllib.request.urlopen(f"{url}/openapi.json", timeout=300).read()  # made when first asked for
        for mode in ("positive", "negative"):
            report = home / f"{mode}.xml"
            done = run(url, report, mode, given.examples, given.seed)
            print(done.stdout, flush=True)
            if not report.exists():
                raise SystemExit("schemathesis made no report")
            for case in ElementTree.parse(report).iter("testcase"):
                failed = [*case.iter("failure"), *case.iter("error")]
                rows.append({"mode": mode, "operation": case.get("name"), "failures": len(failed)})
        alive = process.poll() is None
    tracebacks = (home / "log").read_text().count("Traceback")
    summary = {"failures": sum(row["failures"] for row in rows), "tracebacks": tracebacks, "server_alive": alive}
    rows.insert(0, {"operations": len({row["operation"] for row in rows}), "examples": given.examples, **summary})
    print(rows[0])
    if not given.dry:
        write_results("openapi", rows)


if __name__ == "__main__":
    main()
