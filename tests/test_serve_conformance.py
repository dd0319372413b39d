"""OpenAI's own tests of its Python client, llama.cpp's of its server, and schemathesis, against `tenfold serve`.

`make nightly` installs what they need, and puts the source packages that hold the tests into `build`.
"""

import re
import subprocess
import sys
import urllib.request
from importlib.util import find_spec

import pytest

from bench.serve.conformance import llama_cpp_cases, openai_cases, read_report, source
from bench.serve.left_out import OPENAI
from bench.serve.server import SMALL_OPTIONS, serving, small_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "unsupported_method", "allow_header_conformance",
)  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The URL of a server, its process, and the file that it writes to."""
    home = tmp_path_factory.mktemp("server")
    asked = (*SMALL_OPTIONS, "--feedback", f"sqlite:///{home / 'feedback.db'}")
    with serving(small_model(home / "small", 256), *asked, log=home / "log") as (url, process):
        yield url, process, home / "log"


@pytest.mark.skipif(source("openai") is None, reason="the source package of openai is not in build/openai")
@pytest.mark.skipif(find_spec("respx") is None, reason="what the client's tests need is not installed")
def test_the_clients_own_tests_pass_but_for_what_is_refused(server, tmp_path):
    cases = openai_cases(server[0], tmp_path)
    refused = {f"tests.api_resources.{f.removesuffix('.py').replace('/', '.')}": names for f, names in OPENAI.items()}
    for case in cases:
        names = refused[case.file.rpartition(".")[0]]
        assert case.passed or re.match(f"test_(method|raw_response|streaming_response)_({names})", case.name), case
    assert sum(case.passed for case in cases) >= 291
    assert "Traceback" not in server[2].read_text()


@pytest.mark.skipif(source("llama_cpp_python") is None, reason="its source package is not in build/llama_cpp_python")
def test_llama_cpps_tests_of_its_server_pass_but_for_those_that_are_left_out(tmp_path):
    cases = llama_cpp_cases(tmp_path)
    assert all(case.passed or case.left_out for case in cases), [case for case in cases if not (case.passed or case.left_out)]
    assert sum(case.passed for case in cases) >= 150


@pytest.mark.skipif(find_spec("schemathesis") is None, reason="schemathesis is not installed")
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_every_answer_is_one_that_the_document_promises(server, tmp_path, mode):
    """No status of 500 or above, and every status, content type and body as `/openapi.json` says."""
    url, process, log = server
    urllib.request.urlopen(f"{url}/openapi.json", timeout=300).read()  # made when first asked for
    report = tmp_path / "report.xml"
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--checks", ",".join(CHECKS),
        "--mode", mode, "--max-examples", "20", "--seed", "1", "--generation-database", "none", "--continue-on-failure",
        "--suppress-health-check", "all", "--warnings", "off", "--no-color", "--request-timeout", "120",
        "--report-junit-path", str(report), "--exclude-path", "/sleep",  # a server that sleeps answers 503, as it should
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path, check=False)
    assert report.exists(), done.stdout
    found = read_report(report)
    assert len(found) >= 17 and all(case.passed for case in found), done.stdout
    assert process.poll() is None and "Traceback" not in log.read_text()
