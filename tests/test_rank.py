"""Ranking: a model beside the best there can be, new items and objectives, and recommendations over HTTP."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from tenfold.cli.commands import run
from tenfold.rank.ranker import History, Ranker
from tenfold.rank.serving.recommender import Query, Recommender
from tenfold.rank.task import Ranking
from tenfold.rank.walk import doubled, walk
from tenfold.spec.errors import TenfoldError
from tenfold.spec.forecasts import read_forecasts
from tenfold.train.run_file import config_from_fields


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """What the circle's small walk leaves, of a ranker of the made interactions."""
    home = tmp_path_factory.mktemp("generations")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENFOLD_CIRCLE", "small")
        walk(home, lambda said: None)
    return home


def test_a_doubling_is_forecast_to_gain_less_than_the_last_and_no_more_than_it():
    assert doubled([0.1, 0.3, 0.4], 1000)[3] == pytest.approx(0.45)
    assert doubled([0.1, 0.2, 0.4], 1000)[3] == pytest.approx(0.6)
    assert doubled([0.3, 0.2, 0.4], 1000)[3] == doubled([0.1, 0.4, 0.4], 1000)[3] == pytest.approx(0.4)


def test_the_model_comes_near_the_best_there_can_be_far_above_popularity(home, capsys):
    run(["rank", "evaluate", str(home / "rank-synthetic"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((home / "rank-synthetic" / "score.json").read_text())
    scores, above = found["scores"], found["model_above"]
    assert set(scores) >= {"popularity", "popularity_30_days", "markov", "itemknn", "ease"} == set(above)
    model, best = scores["model"]["hit_rate_10"], scores["best_possible"]["hit_rate_10"]
    assert best - 0.03 < model and above["popularity"]["hit_rate_10"]["low"] > 0.5
    assert above["markov"]["hit_rate_10"]["mean"] == pytest.approx(model - scores["markov"]["hit_rate_10"])


def test_the_walk_makes_its_forecasts_first_and_a_second_changes_nothing(home, monkeypatch):
    monkeypatch.setenv("TENFOLD_CIRCLE", "small")
    made = {one.forecast.kind: one for one in read_forecasts(home)}
    assert set(made) == {"hit_rate", "paired_difference"} and all(one.measured is not None for one in made.values())
    before = {p: p.read_bytes() for p in home.rglob("*") if p.is_file()}
    began = time.monotonic()
    again = walk(home, lambda said: None)
    assert {p: p.read_bytes() for p in home.rglob("*") if p.is_file()} == before and time.monotonic() - began < 5
    assert again["served"]["hits"] >= 8 and all((home / file).exists() for file in again["files"])


def test_a_ranker_scores_as_the_plain_forward_pass_over_the_newest_items(home):
    ranker = Ranker.load(home / "rank-synthetic")
    long = [*range(1, 40)]
    histories = [History(long), History([5, 3, 9]), History([])]
    scores = ranker.score(histories)
    for row, history in zip(scores, histories, strict=True):
        newest = [0, *history.items][1 - ranker.model.spec.context :]
        with torch.no_grad():
            assert row == pytest.approx(ranker.model(torch.tensor([newest]))[0, -1].numpy(), abs=1e-4)
    candidates = ranker.tokens(["item-3", "nobody's", "item-0"])
    assert candidates[1] == 0 and ranker.names[candidates[0]] == "item-3"
    assert ranker.score(histories, candidates) == pytest.approx(scores[:, candidates], abs=1e-5)
    with pytest.raises(TenfoldError, match="no content tower"):
        ranker.add_items(pa.table({"item": ["new"]}))


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


def test_a_run_file_of_another_family_or_context_is_refused(tmp_path):
    fields = {"tokens": 1000, "task": {"name": "rank"}, "data": {"corpus": "synthetic", "seq_len": 20}}
    for model, said in (
        ({"width": 32}, "families rank and hstu"),
        ({"width": 32, "family": "rank"}, "context = 21"),
        ({"width": 32, "contxt": 1}, "context"),
    ):
        with pytest.raises(TenfoldError, match=said):
            Ranking.open(config_from_fields({**fields, "model": model}, "test"), tmp_path)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A table of items of four kinds, which stand in their titles: a user takes items of one kind, and likes every second kind."""
    folder, rng = tmp_path_factory.mktemp("shop"), np.random.default_rng(0)
    rows = []
    for user in range(300):
        kind = rng.integers(4)
        for step in range(12):
            item = 4 * rng.integers(15) + kind
            rows.append((f"u{user}", f"i{item}", 100 * user + step, f"kind{kind}", float(kind % 2 == (step % 5 > 0))))
    names = ("user", "item", "time", "item_title", "like")
    pyarrow.parquet.write_table(
        pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), folder / "shop.parquet"
    )
    command = [
        "rank",
        "train",
        str(folder / "shop.parquet"),
        "--home",
        str(folder),
        "--objectives",
        "like=1",
        "--content",
        "--json",
    ]
    run([*command, "--family", "hstu", "--width", "32", "--seq-len", "12", "--epochs", "10"])
    return folder


def test_a_new_item_is_ranked_by_what_is_known_of_it_without_training(shop):
    knows_new_items(Ranker.load(shop / "rank-shop"))


def knows_new_items(ranker):
    """Let two new items be ranked, and see that each comes first to those who take its kind."""
    ranker.add_items(pa.table({"item": ["new1", "new2", "i1"], "item_title": ["kind1", "kind2", "kind3"]}))
    assert ranker.tokens(["new1", "new2"]) == [len(ranker.names) - 2, len(ranker.names) - 1]
    for kind in range(4):
        history = History(ranker.tokens([f"i{4 * i + kind}" for i in (1, 5, 9)]), [1, 2, 3], 4)
        new = ranker.score([history], ranker.tokens(["new1", "new2"]))[0]
        if kind in (1, 2):
            assert new.argmax() == kind - 1 and new.max() > np.median(ranker.score([history])[0])


def test_semantic_ids_are_kept_with_the_model_and_new_items_are_served_by_theirs(shop, capsys):
    command = ["rank", "train", str(shop / "shop.parquet"), "--home", str(shop), "--out", str(shop / "codes"), "--json"]
    with pytest.raises(TenfoldError, match="a tower or by semantic ids"):
        run([*command, "--semantic-ids", "2", "--content"])
    run([*command, "--semantic-ids", "2", "--family", "llama", "--width", "32", "--seq-len", "12", "--epochs", "10"])
    capsys.readouterr()
    knows_new_items(Ranker.load(shop / "codes"))

    recommender = Recommender.load(shop / "codes")
    ranker = recommender.ranker
    recommender.add_items(pa.table({"item": ["new1", "like new1", "bare"], "item_title": ["kind1", "Kind1", None]}))
    vectors = ranker.items[torch.tensor(ranker.tokens(["new1", "like new1", "bare"]))]
    assert torch.equal(vectors[0], vectors[1]) and vectors[0].norm() > 0 and not vectors[2].any()
    history = ranker.history([f"i{4 * i + 1}" for i in (1, 5, 9)])
    (shown,) = recommender.answer([Query(history, len(ranker.names))], np.random.default_rng(0))
    assert set(ranker.tokens(["new1", "like new1"])) <= set(shown.tokens[:30])
    with pytest.raises(TenfoldError, match="514 features"):
        ranker.add_items(pa.table({"item": ["wide"], "item_title": ["kind1"], "item_vector": [[1.0, 2.0]]}))


def test_objectives_are_predicted_as_often_as_they_come(shop, capsys):
    ranker = Ranker.load(shop / "rank-shop")
    assert ranker.objectives == ["like=1"]
    for kind, came in ((0, 0.2), (1, 0.8), (2, 0.2), (3, 0.8)):
        history = History(ranker.tokens([f"i{4 * i + kind}" for i in (1, 5, 9)]), [1, 2, 3], 4)
        said = ranker.predict(history, ranker.tokens([f"i{4 * i + kind}" for i in (2, 3, 4)]))["like=1"]
        assert said.mean() == pytest.approx(came, abs=0.25)
    run(["rank", "evaluate", str(shop / "rank-shop"), "--json"])
    assert json.loads(capsys.readouterr().out)["scores"]["model"]["error_of_like=1"] < 0.15


def test_compare_says_how_far_another_run_and_later_cuts_lie(shop, capsys):
    command = ["rank", "train", str(shop / "shop.parquet"), "--home", str(shop), "--out", str(shop / "other"), "--json"]
    run([*command, "--family", "llama", "--loss", "sampled_softmax", "--width", "32", "--seq-len", "12", "--epochs", "3"])
    capsys.readouterr()
    run(["rank", "compare", str(shop / "other"), "--beside", str(shop / "rank-shop"), "--json"])
    found = json.loads(capsys.readouterr().out)
    ours, theirs = (found["scores"][name]["ndcg_10"] for name in ("model", "rank-shop"))
    assert found["model_above"]["rank-shop"]["ndcg_10"]["mean"] == pytest.approx(ours - theirs)
    run(["rank", "compare", str(shop / "other"), "--cuts", "2", "--json"])
    rolled = json.loads(capsys.readouterr().out)
    assert rolled["split"] == "2 cuts" and rolled["queries"] == 1800 and (shop / "other" / "cuts" / "1" / "model").is_dir()
    assert rolled["model_above"]["popularity"]["hit_rate_10"]["low"] > 0


@pytest.mark.slow
def test_a_climb_of_rankers_forecasts_the_next_one_and_is_scored(tmp_path, capsys):
    command = ["climb", "--task", "rank", "--corpus", "teacher:users=20000,n_items=200,length=40", "--seq-len", "40"]
    with pytest.raises(TenfoldError, match="lower --top"):
        run([*command, "--top", "1e13", "--home", str(tmp_path), "--json"])
    run([*command, "--top", "1e11", "--home", str(tmp_path), "--json"])
    found = json.loads(capsys.readouterr().out)
    loss = found["scores"]["loss_nats"]
    assert abs(loss["error_pct"]) < 5 and "climb/g1/loss" in {one.forecast.key for one in read_forecasts(tmp_path)}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "hstu"])
def test_two_processes_train_the_ranker_that_one_does(family, tmp_path, capsys):
    command = ["rank", "train", "synthetic:users=200", "--home", str(tmp_path), "--family", family, "--dropout", "0", "--json"]
    found = {}
    for processes in ([], ["--launch", "local:2"]):
        out = tmp_path / f"run{len(processes)}"
        run([*command, "--width", "32", "--seq-len", "20", "--epochs", "3", "--out", str(out), *processes])
        found[len(processes)] = json.loads(capsys.readouterr().out)["loss"]
    assert found[0] == pytest.approx(found[2], rel=1e-4)
    assert Ranker.load(tmp_path / "run2").score([History([1, 2])]).shape == (1, 241)
