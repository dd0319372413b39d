"""The board for Grafana, against the metrics that a server gives."""

import json

import promql_parser
import pytest
from chat_models import chat_model
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from bench.harness import ROOT
from tenfold.serve.api.app import make_app
from tenfold.serve.api.models import Models
from tenfold.serve.options import EngineOptions, ServerOptions

BOARD = json.loads((ROOT / "deploy" / "grafana-board.json").read_text())
QUERIES = [query["expr"] for panel in BOARD["panels"] for query in panel["targets"]]
_NAMES = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """The labels of each metric of a server that has answered; of those of which there is no sample, those of a model."""
    path = chat_model(tmp_path_factory.mktemp("board") / "tiny")
    app = make_app(Models({"tiny": EngineOptions(path, kv_cache_gib=0.01, threads=1)}, ServerOptions().limits), ServerOptions())
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        asked = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3})
        assert asked.status_code == 200
        text = client.get("/metrics").text
    found = {}
    for family in text_string_to_metric_families(text):
        wanted = family.name.startswith("vllm:") and not family.name.endswith("_created")
        for ending in _NAMES[family.type] if wanted else ():
            labels = [set(sample.labels) for sample in family.samples if sample.name == family.name + ending]
            found[family.name + ending] = labels[0] if labels else {"model_name"}
    return found


class Read:
    """The metrics, with the labels that are matched, and the labels that are summed by, of an expression."""

    def __init__(self, expression):
        self.metrics, self.groups = [], set()
        self._walk(promql_parser.parse(expression.replace("$__rate_interval", "5m")))

    def _walk(self, node):
        match node:
            case promql_parser.VectorSelector():
                self.metrics.append((node.name, {matcher.name for matcher in node.matchers.matchers}))
            case promql_parser.MatrixSelector():
                self._walk(node.vector_selector)
            case promql_parser.Call():
                for one in node.args:
                    self._walk(one)
            case promql_parser.AggregateExpr():
                self.groups |= set(node.modifier.labels)
                self._walk(node.expr)
            case promql_parser.BinaryExpr():
                self._walk(node.lhs)
                self._walk(node.rhs)


@pytest.mark.parametrize("expression", QUERIES)
def test_a_query_asks_for_metrics_and_labels_that_the_server_has(given, expression):
    read = Read(expression)
    assert read.metrics
    for name, labels in read.metrics:
        assert name in given and labels | read.groups <= given[name]


def test_every_metric_of_the_server_is_on_the_board(given):
    asked = {name for expression in QUERIES for name, _ in Read(expression).metrics}
    assert {name for name in given if not name.endswith(("_sum", "_count"))} == asked


def test_the_board_has_one_place_and_one_number_for_each_panel():
    places = [set() for _ in BOARD["panels"]]
    for place, panel in zip(places, BOARD["panels"], strict=True):
        at = panel["gridPos"]
        place |= {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
    assert sum(map(len, places)) == len(set.union(*places)) and max(x for place in places for x, _ in place) < 24
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
