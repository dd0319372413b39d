"""Ranking: interactions read and drawn, metrics by brute force, a model beside the best there can be, recommendations over HTTP."""

import itertools
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from tenfold.cli.commands import run
from tenfold.data.interactions.interactions import open_interactions
from tenfold.data.interactions.read import read_histories
from tenfold.data.interactions.synthetic import ClusterChain
from tenfold.model.io.huggingface import read_model
from tenfold.rank.metrics import best_possible, markov, popularity, quality, quality_of, scorer_of
from tenfold.rank.routes import rankers
from tenfold.rank.task import Ranking
from tenfold.rank.walk import doubled, walk
from tenfold.serve.api.app import make_app
from tenfold.serve.api.models import Models
from tenfold.serve.options import EngineOptions, Limits, ServerOptions
from tenfold.spec.errors import TenfoldError
from tenfold.spec.forecasts import read_forecasts
from tenfold.train.run_file import config_from_fields

TABLE = {"user": ["b", "a", "a", "b", "a", "b"], "item": ["x", "y", "z", "y", "x", "z"], "time": [3, 2, 2, 1, 1, 2]}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """What the circle's small walk leaves, of a ranker of the made interactions."""
    home = tmp_path_factory.mktemp("generations")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENFOLD_CIRCLE", "small")
        walk(home, lambda said: None)
    return home


def by_names(histories, names):
    return [[names[item] for item in history] for history in histories]


def test_tables_are_read_alike_and_rows_of_one_time_keep_their_order(tmp_path):
    rows = list(zip(*TABLE.values(), strict=True))
    (tmp_path / "t.csv").write_text("user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    (tmp_path / "t.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + "".join(f"{u}\t{i}\t5\t{t}\n" for u, i, t in rows)
    )
    times = pa.array([t * 10**6 for t in TABLE["time"]], pa.timestamp("us"))
    pa.parquet.write_table(pa.table({**TABLE, "time": times}), tmp_path / "t.parquet")
    for name in ("t.csv", "t.inter", "t.parquet"):
        assert sorted(by_names(*read_histories(tmp_path / name))) == [["x", "y", "z"], ["y", "z", "x"]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("user,thing,time\n1,2,3\n", "no column 'item'"),
        ("user,item,time\n", "no rows"),
        ("user,item,time\n1,2,\n1,3,4\n", "empty field"),
        ("user,item,time\n1,2,noon\n", "no times"),
        ("user,item,time\n1,2,3\n1,2\n", "cannot be read"),
        ("user,item,time\n1,2,3\n1,3,4\n2,2,2\n", "three interactions"),
        ("user,item,time\n1,<start>,3\n1,3,4\n1,2,2\n", "no item called"),
    ],
)
def test_what_is_no_table_of_interactions_is_said_in_a_sentence(tmp_path, text, said):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(TenfoldError, match=said):
        open_interactions(str(tmp_path / "t.csv"), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


def test_rows_are_a_pure_function_of_the_step_and_hold_nothing_that_is_held_out(tmp_path):
    data = open_interactions("synthetic", tmp_path)
    draw = {"batch_size": 100, "seq_len": 8, "seed": 3}
    whole, part = data.batch(7, slice(None), **draw), data.batch(7, slice(30, 50), **draw)
    assert (whole.tokens[30:50] == part.tokens).all() and (whole.targets[30:50] == part.targets).all()
    users = {tuple(history[:-2]): user for user, history in enumerate(data.histories)}
    assert len(users) == len(data.histories)
    drawn = []
    for step in range(20):
        rows = data.batch(step, slice(None), **{**draw, "seq_len": 24})
        for tokens, targets in zip(rows.tokens, rows.targets, strict=True):
            drawn.append(users[tuple(targets[targets >= 0])])  # all of it, and nothing else
            assert tokens[0] == 0 and (tokens[1 : (targets >= 0).sum()] == targets[targets >= 0][:-1]).all()
    assert sorted(drawn) == list(range(2000))  # an epoch


def test_hit_rate_and_ndcg_are_their_means_over_all_orders_of_ties():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (40, 14)).astype(float)
    histories = [rng.choice(np.arange(1, 14), 2, replace=False).tolist() for _ in scores]
    targets = rng.integers(1, 14, 40)
    found = quality(scores, targets, histories)
    for row, history, target, hit, ndcg in zip(scores, histories, targets, *found.values(), strict=True):
        left = [i for i in range(1, 14) if i == target or i not in history]
        tied = [i for i in left if row[i] == row[target]]
        places = [sum(row[i] > row[target] for i in left) + order.index(target) for order in itertools.permutations(tied)]
        assert hit == pytest.approx(np.mean([place < 10 for place in places]))
        assert ndcg == pytest.approx(np.mean([1 / np.log2(place + 2) if place < 10 else 0 for place in places]))


def test_made_interactions_follow_their_probabilities(tmp_path):
    chain, data = ClusterChain(), open_interactions("synthetic", tmp_path)
    histories, _ = data.held_out("test")
    p = chain.probabilities([[token - 1 for token in h] for h in histories])
    assert p.sum(1) == pytest.approx(1) and all(len(set(h)) == len(h) for h in data.histories)
    expected = np.sort(p, 1)[:, -10:].sum(1)
    measured = quality_of(best_possible, data, "test")["hit_rate_10"]
    assert abs(measured.mean() - expected.mean()) < 4 * np.sqrt((expected * (1 - expected)).mean() / len(expected))
    for rival in (popularity, markov):
        assert quality_of(rival(data), data, "test")["hit_rate_10"].mean() < measured.mean() + 0.02


def test_rivals_count_what_may_be_trained_on(tmp_path):
    (tmp_path / "t.csv").write_text("user,item,time\n" + "".join(f"{u},{i},{t}\n" for u in "ab" for t, i in enumerate("pqpqrs")))
    data = open_interactions(str(tmp_path / "t.csv"), tmp_path)
    p, q, s = 1, 2, 4
    assert popularity(data)([[p]]).tolist() == [[0, 4, 4, 0, 0]]
    assert markov(data)([[q, p], [s]]) == pytest.approx(
        np.array([[0, 4, 4, 0, 0], [0, 4, 4, 0, 0]]) / 9 + [[0, 0, 4, 0, 0], [0] * 5]
    )


def test_a_doubling_is_forecast_to_gain_less_than_the_last_and_no_more_than_it():
    assert doubled([0.1, 0.3, 0.4], 1000)[3] == pytest.approx(0.45)
    assert doubled([0.1, 0.2, 0.4], 1000)[3] == pytest.approx(0.6)
    assert doubled([0.3, 0.2, 0.4], 1000)[3] == doubled([0.1, 0.4, 0.4], 1000)[3] == pytest.approx(0.4)


def test_the_model_comes_near_the_best_there_can_be_far_above_popularity(home, capsys):
    run(["rank", "evaluate", str(home / "rank-synthetic"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((home / "rank-synthetic" / "score.json").read_text())
    model, best = found["model"]["hit_rate_10"], found["best_possible"]["hit_rate_10"]
    assert best - 0.03 < model and found["above_popularity"]["low"] > 0.5
    assert found["above_popularity"]["hit_rate_10"] == pytest.approx(model - found["popularity"]["hit_rate_10"])


def test_the_walk_makes_its_forecasts_first_and_a_second_changes_nothing(home, monkeypatch):
    monkeypatch.setenv("TENFOLD_CIRCLE", "small")
    made = {one.forecast.kind: one for one in read_forecasts(home)}
    assert set(made) == {"hit_rate", "paired_difference"} and all(one.measured is not None for one in made.values())
    before = {p: p.read_bytes() for p in home.rglob("*") if p.is_file()}
    began = time.monotonic()
    again = walk(home, lambda said: None)
    assert {p: p.read_bytes() for p in home.rglob("*") if p.is_file()} == before and time.monotonic() - began < 5
    assert again["served"]["hits"] >= 8 and all((home / file).exists() for file in again["files"])


def test_scores_are_those_of_the_plain_forward_pass_over_the_newest_items(home):
    model, data = read_model(home / "rank-synthetic" / "model"), open_interactions("synthetic", home)
    histories = [data.histories[0], data.histories[1][:3], [], [*data.histories[2], *data.histories[3]]]
    scores = scorer_of(model)(histories)
    for row, history in zip(scores, histories, strict=True):
        newest = [0, *history][1 - model.spec.context :]
        with torch.no_grad():
            assert row == pytest.approx(model(torch.tensor([newest]))[0, -1].numpy(), abs=1e-4)


@pytest.mark.slow
def test_a_walk_that_is_killed_at_any_moment_goes_on_to_the_same_result(home, tmp_path):
    code = "import pathlib, tenfold.rank.walk as r; r.walk(pathlib.Path('.'), print)"
    rng = np.random.default_rng(0)
    for _ in range(10):
        walking = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"TENFOLD_CIRCLE": "small"})
        time.sleep(rng.uniform(2, 15))
        walking.kill()
        walking.wait()
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"TENFOLD_CIRCLE": "small"}, check=True)
    for file in ("rank-synthetic/score.json", "rank-synthetic/model/model.safetensors"):
        assert (tmp_path / file).read_bytes() == (home / file).read_bytes()
    assert [one.measured for one in read_forecasts(tmp_path)] == [one.measured for one in read_forecasts(home)]


class Served:
    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}"

    def recommend(self, **body):
        request = urllib.request.Request(
            f"{self.url}/v1/recommend", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


@pytest.fixture(scope="module")
def served(home):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tenfold", "serve", str(home / "rank-synthetic"), "--port", str(port), "--feedback", ""]
    process = subprocess.Popen(
        [*command, "--threads", "1", "--kv-cache-gib", "0.02"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    server, end = Served(port), time.monotonic() + 120
    while True:
        try:
            server.recommend(history=[])
            break
        except OSError:
            assert process.poll() is None and time.monotonic() < end, process.stdout.read()
            time.sleep(0.1)
    yield server
    process.terminate()
    assert "Traceback" not in process.communicate(timeout=60)[0]


def test_the_server_recommends_what_the_model_ranks_first(home, served):
    data, scorer = open_interactions("synthetic", home), scorer_of(read_model(home / "rank-synthetic" / "model"))
    for history, k in (
        (data.histories[5][:-1], 10),
        (data.histories[6][:2], 100),
        ([], 3),
        (data.histories[7] + data.histories[8], 5),
    ):
        scores = scorer([history])[0]
        scores[[0, *history]] = -np.inf
        status, answer = served.recommend(history=[f"item-{token - 1}" for token in history], k=k)
        assert status == 200 and answer["model"] == "rank-synthetic" and answer["unknown"] == []
        assert answer["items"] == [f"item-{token - 1}" for token in np.argsort(-scores)[:k]]
        assert answer["logprobs"] == sorted(answer["logprobs"], reverse=True)


def test_excluded_and_unknown_items_are_left_out_and_said(served):
    first = served.recommend(history=["item-3"], k=2)[1]["items"]
    answer = served.recommend(history=["nobody's", "item-3"], exclude=[first[0], "<start>"], k=1)[1]
    assert answer["items"] == [first[1]] and answer["unknown"] == ["nobody's", "<start>"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "history"),
        ({"history": "item-1"}, "history"),
        ({"history": [1]}, "history"),
        ({"history": ["item-1"] * 513}, "512"),
        ({"history": [], "exclude": ["item-1"] * 401}, "400"),
        ({"history": [], "k": 0}, "greater than or equal to 1"),
        ({"history": [], "k": 101}, "less than or equal to 100"),
        ({"history": ["x" * 1001]}, "1000"),
    ],
)
def test_a_request_that_costs_too_much_or_says_nothing_is_refused_in_a_sentence(served, body, said):
    status, answer = served.recommend(**body)
    assert status == 400 and said in answer["error"]["message"] and answer["error"]["message"].endswith(".")


def test_a_model_that_is_not_there_is_said(served):
    assert served.recommend(history=[], model="another")[0] == 404


def test_a_server_without_a_ranking_model_has_no_such_route(home, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    text, rank = EngineOptions(tmp_path), EngineOptions(home / "rank-synthetic" / "model")
    for options, there in (({"text": text}, False), ({"text": text, "rank": rank}, True)):
        models = Models(options, Limits())
        assert ("/v1/recommend" in make_app(models, ServerOptions()).openapi()["paths"]) == there == bool(rankers(models))


def test_a_run_file_of_another_family_or_context_is_refused(tmp_path):
    fields = {"tokens": 1000, "task": {"name": "rank"}, "data": {"corpus": "synthetic", "seq_len": 20}}
    for model, said in (
        ({"width": 32}, "family"),
        ({"width": 32, "family": "rank"}, "context = 21"),
        ({"width": 32, "contxt": 1}, "context"),
    ):
        with pytest.raises(TenfoldError, match=said):
            Ranking.open(config_from_fields({**fields, "model": model}, "test"), tmp_path)
