"""The tests of OpenAI's own Python client, unchanged, and schemathesis, against `tenfold serve` with a small random model.

`make nightly` installs both and puts the client's source package, which holds its tests, into `build/openai`.
"""

import os
import re
import subprocess
import sys
import tarfile
import urllib.request
import xml.etree.ElementTree as ElementTree
from importlib.util import find_spec

import pytest

from bench.harness import ROOT
from bench.serve.server import serving, small_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
SOURCES = sorted((ROOT / "build" / "openai").glob("openai-*.tar.gz"))
# By test file of a resource that is served, what fails by intent: objects that were never made; echoes with log-probabilities in the
# strict client, whose types have no null for the first token; embeddings without a format in it, which asks for base64 and then expects
# numbers; prompt objects; a conversation together with a previous response; and what there is no route for: to delete a model, to
# compact, and to list the input items of a response.
REFUSED = {
    "chat/test_completions.py": "delete|retrieve|update",
    "chat/completions/test_messages.py": "list",
    "test_completions.py": "create_with_all_params_overload_1",
    "test_models.py": "delete",
    "test_embeddings.py": "create",
    "test_responses.py": "retrieve|delete|cancel|compact|create_with_all_params",
    "responses/test_input_tokens.py": "count_with_all_params",
    "responses/test_input_items.py": "list",
    "test_conversations.py": "delete|retrieve|update",
    "conversations/test_items.py": "create|delete|list|retrieve",
}
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "unsupported_method", "allow_header_conformance",
)  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The URL of a server, its process, and the file that it writes to."""
    home = tmp_path_factory.mktemp("server")
    asked = ("--any-name", "--kv-cache-gib", "0.1", "--threads", "1", "--feedback", f"sqlite:///{home / 'feedback.db'}")
    with serving(small_model(home / "small", 256), *asked, log=home / "log") as (url, process):
        yield url, process, home / "log"


def cases(report):
    """The test cases of a JUnit file, each with whether it passed."""
    for case in ElementTree.parse(report).iter("testcase"):
        yield case, not any(case.find(kind) is not None for kind in ("failure", "error", "skipped"))


@pytest.mark.skipif(not SOURCES, reason="the source package of openai is not in build/openai")
@pytest.mark.skipif(find_spec("respx") is None, reason="what the client's tests need is not installed")
def test_the_clients_own_tests_pass_but_for_what_is_refused(server, tmp_path):
    with tarfile.open(SOURCES[-1]) as archive:
        archive.extractall(tmp_path, filter="data")
    files = [f"tests/api_resources/{file}" for file in REFUSED]
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "--tb=line", f"--junitxml={report}", "-n", "0", *files]
    environment = os.environ | {"TEST_API_BASE_URL": f"{server[0]}/v1"}
    subprocess.run(command, cwd=next(tmp_path.glob("openai-*")), env=environment, check=False)
    refused = {f"tests.api_resources.{f.removesuffix('.py').replace('/', '.')}": names for f, names in REFUSED.items()}
    passed = 0
    for case, good in cases(report):
        names = refused[case.get("classname").rpartition(".")[0]]
        passed += good
        assert good or re.match(f"test_(method|raw_response|streaming_response)_({names})", case.get("name")), case.get("name")
    assert passed >= 291
    assert "Traceback" not in server[2].read_text()


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
    found = list(cases(report))
    assert len(found) >= 17 and all(good for _, good in found), done.stdout
    assert process.poll() is None and "Traceback" not in log.read_text()
