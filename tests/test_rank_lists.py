"""How lists are made: retrieval and candidates against brute force, rules and variety, the chances of what is shown, and the queue."""

import asyncio

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.rank.made import made_ranker
from tenfold.data.interactions.content import HASHED, features
from tenfold.rank.content import ContentTower
from tenfold.rank.extras import Extras
from tenfold.rank.objectives import Calibration, parse
from tenfold.rank.ranker import History, Ranker
from tenfold.rank.serving.catalogue import Catalogue, Range, read_catalogue
from tenfold.rank.serving.index import Approximate, Exact
from tenfold.rank.serving.places import ARRANGED, Places, Pool, Rules, fill, retraced
from tenfold.rank.serving.recommender import Query, Recommender
from tenfold.rank.serving.settings import RankSettings, WorkerSettings
from tenfold.rank.serving.worker import RankWorker
from tenfold.serve.api.errors import ApiError
from tenfold.serve.backends.backend import BackendStopped
from tenfold.serve.options import EngineOptions
from tenfold.spec.errors import TenfoldError

ITEMS = 60
SHELF = np.array(["", *(f"shelf {i % 4}" for i in range(ITEMS))])
PRICE = np.array([np.nan, *(float(i) for i in range(ITEMS))])
CATALOGUE = Catalogue(ITEMS + 1, {"shelf": SHELF, "price": PRICE})


@pytest.fixture(scope="module")
def ranker(tmp_path_factory):
    return Ranker.load(made_ranker(tmp_path_factory.mktemp("r") / "r", ITEMS, 16, 50))


def recommender(ranker, **options):
    return Recommender(ranker, RankSettings(**options), CATALOGUE)


def listed(of, *queries):
    return of.answer(queries, np.random.default_rng(0))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_the_exact_product_finds_what_sorting_finds(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    n, k = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 50))
    items, users = (torch.from_numpy(rng.standard_normal((rows, 4), np.float32)) for rows in (n, 3))
    out = [rng.choice(n, data.draw(st.integers(0, n)), replace=False).tolist() for _ in users]
    allowed = torch.from_numpy(rng.random(n) < 0.5) if data.draw(st.booleans()) else None
    for user, gone, found in zip(users, out, Exact(items).search(users, k, out, allowed), strict=True):
        scores = (items @ user).numpy()
        left = [i for i in range(1, n) if i not in gone and (allowed is None or allowed[i])]
        assert found.tokens.tolist() == sorted(left, key=lambda i: -scores[i])[:k]
        assert found.scores == pytest.approx(scores[found.tokens], abs=1e-5)


def test_the_approximate_index_finds_nearly_all_and_never_what_is_left_out():
    rng = np.random.default_rng(0)
    items, users = (torch.from_numpy(rng.standard_normal((n, 16), np.float32)) for n in (5000, 20))
    out = [rng.choice(5000, 50).tolist() for _ in users]
    allowed = torch.from_numpy(rng.random(5000) < 0.01)
    exact, near = Exact(items), Approximate(items)
    for where in (None, allowed):
        pairs = zip(exact.search(users, 50, out, where), near.search(users, 50, out, where), out, strict=True)
        shares = []
        for right, found, gone in pairs:
            assert not {0, *gone} & set(found.tokens.tolist()) and (np.diff(found.scores) <= 0).all()
            shares.append(len(set(right.tokens.tolist()) & set(found.tokens.tolist())) / len(right.tokens))
        assert np.mean(shares) > (0.9 if where is None else 0.999)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, ITEMS), max_size=12), st.lists(st.integers(1, ITEMS), min_size=1, max_size=20, unique=True))
def test_a_candidate_s_score_depends_on_the_history_alone(ranker, history, candidates):
    of, told = recommender(ranker), History(tuple(history))
    together, again = (listed(of, Query(told, 99, candidates))[0] for _ in range(2))
    alone = {c: listed(recommender(ranker), Query(told, 1, [c]))[0].scores[0] for c in candidates}
    logits = ranker.model(torch.tensor([[0, *history]]))[0, -1].detach().numpy()
    assert together == again and of.hits.found == 1
    for token, score in zip(together.tokens, together.scores, strict=True):
        assert score == pytest.approx(alone[token], abs=1e-5) and score == pytest.approx(logits[token], abs=1e-4)
    assert together.tokens == sorted(candidates, key=lambda c: -together.scores[together.tokens.index(c)])


def test_users_answered_together_get_what_each_gets_alone(ranker):
    rng = np.random.default_rng(1)
    queries = [
        Query(
            History(tuple(rng.integers(1, ITEMS + 1, rng.integers(0, 30)).tolist())), 5, [3, 9, 27, 44] if i % 3 == 0 else None,
            frozenset(range(1, i)), Rules(where={"shelf": f"shelf {i % 4}"} if i % 2 else {}),
        )
        for i in range(20)
    ]  # fmt: skip
    together = listed(recommender(ranker), *queries)
    for query, found in zip(queries, together, strict=True):
        (alone,) = listed(recommender(ranker), query)
        assert found.tokens == alone.tokens and found.scores == pytest.approx(alone.scores, abs=1e-5)


def test_of_nobody_there_are_no_lists(ranker):
    assert listed(recommender(ranker)) == [] and ranker.score([]).shape == (0, ITEMS + 1)


def test_filters_and_limits_hold_at_every_place(ranker):
    history = History((1, 2, 3))
    rules = Rules(where={"price": Range(10, 40), "shelf": ["shelf 1", "shelf 2"]}, at_most={"shelf": 3}, diversity=0.3)
    (found,) = listed(recommender(ranker, explore=0.5), Query(history, 20, rules=rules))
    assert len(found.tokens) == 6 and all(10 <= PRICE[t] <= 40 for t in found.tokens)
    assert sorted(SHELF[found.tokens].tolist()) == ["shelf 1"] * 3 + ["shelf 2"] * 3
    (candidates,) = listed(recommender(ranker), Query(history, 20, list(range(1, ITEMS + 1)), rules=rules))
    assert set(SHELF[candidates.tokens]) == {"shelf 1", "shelf 2"} and len(candidates.tokens) == 6
    (boosted,) = listed(recommender(ranker, pool=ITEMS), Query(history, 15, rules=Rules(boost={"shelf": {"shelf 0": 1e6}})))
    assert set(SHELF[boosted.tokens]) == {"shelf 0"}
    price = Rules(boost={"price": {f"{PRICE[7]:g}": 1e6}})
    (boosted,) = listed(recommender(ranker, pool=ITEMS), Query(history, 1, rules=price))
    assert PRICE[boosted.tokens[0]] == PRICE[7]
    assert listed(recommender(ranker), Query(history, 5, rules=Rules(where={"price": Range(min=1e9)})))[0].tokens == []


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (Rules(where={"colour": "red"}), "no attribute 'colour'"),
        (Rules(where={"shelf": Range(1, 2)}), "is text"),
        (Rules(where={"price": "cheap"}), "is a number"),
        (Rules(boost={"price": {"cheap": 1.0}}), "is a number"),
        (Rules(at_most={"colour": 1}), "no attribute 'colour'"),
        (Rules(boost={"colour": {"red": 1.0}}), "no attribute 'colour'"),
    ],
)
def test_a_rule_that_means_nothing_is_said_and_stops_nobody_else(ranker, rules, said):
    wrong = [Query(History(()), 3, candidates, rules=rules) for candidates in (None, [1, 2, 3])]
    right = [Query(History(()), 3, candidates) for candidates in (None, [1, 2, 3])]
    *bad, catalogue, candidates = listed(recommender(ranker), *wrong, *right)
    assert all(isinstance(one, TenfoldError) and said in str(one) for one in bad)
    assert len(catalogue.tokens) == len(candidates.tokens) == 3


def test_variety_prefers_what_is_unlike_all_before():
    vectors = np.array([[1, 0], [0.99, 0.1], [0, 1], [0.98, 0.2]], np.float32)
    pool = Pool(np.array([5, 6, 7, 8]), np.array([4.0, 3.9, 1.0, 3.8]), vectors)
    orders = {d: fill(Places(pool, Rules(diversity=d), Catalogue(9), 0.0), 4, np.random.default_rng(0)).tokens for d in (0, 0.5)}
    assert orders[0] == [5, 6, 8, 7] and orders[0.5][:2] == [5, 7]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.sampled_from([0.0, 0.4]))
def test_chances_add_up_and_are_found_again_from_what_was_shown(seed, explore, diversity):
    rng = np.random.default_rng(seed)
    tokens = np.sort(rng.choice(np.arange(1, ITEMS + 1), 12, replace=False))
    pool = Pool(tokens, rng.standard_normal(12), rng.standard_normal((12, 3)))
    rules = Rules(at_most={"shelf": 2}, diversity=diversity)
    shown = fill(Places(pool, rules, CATALOGUE, explore), 10, rng)
    chances = retraced(Places(pool, rules, CATALOGUE, explore), shown.tokens)
    assert (
        len(set(shown.tokens))
        == len(shown.tokens)
        == min(10, sum(min(2, n) for n in np.unique(SHELF[tokens], return_counts=True)[1]))
    )
    for token, propensity, p in zip(shown.tokens, shown.propensities, chances, strict=True):
        assert p.sum() == pytest.approx(1) and p[pool.tokens == token] == pytest.approx(propensity) and propensity > 0


def test_items_are_shown_as_often_as_their_propensities_say():
    rng, n = np.random.default_rng(0), 4000
    pool = Pool(np.arange(1, 6), np.arange(5.0)[::-1], np.zeros((5, 1)))
    lists = [fill(Places(pool, Rules(), Catalogue(6), 0.3), 3, rng) for _ in range(n)]
    for place in range(3):
        seen = np.bincount([one.tokens[place] for one in lists], minlength=6) / n
        weighted = np.bincount([one.tokens[place] for one in lists], [1 / one.propensities[place] for one in lists], 6) / n
        assert seen[place + 1] > 0.5
        # Each free item weighs 1 at a place: the inverse propensities make up for how often it is shown.
        free = np.array([sum(token not in one.tokens[:place] for one in lists) for token in range(1, 6)]) / n
        assert weighted[1:] == pytest.approx(free, abs=0.25)


def test_after_the_first_hundred_places_scores_decide():
    pool = Pool(np.arange(1, 301), -np.arange(300.0), np.zeros((300, 1)))
    found = fill(Places(pool, Rules(), Catalogue(301), 0.9), 250, np.random.default_rng(0))
    rest = found.tokens[ARRANGED:]
    assert len(set(found.tokens)) == 250 and rest == sorted(rest) and set(found.propensities[ARRANGED:]) == {1.0}


@pytest.fixture
def taught(tmp_path):
    """A recommender of a ranker with a content tower and an objective, all of random weights."""
    of = Recommender.load(made_ranker(tmp_path / "r", ITEMS, 16, 50), RankSettings(pool=20))
    tower, heads = ContentTower(HASHED, 16).requires_grad_(False), torch.nn.Linear(16, 1).requires_grad_(False)
    of.ranker.extras = Extras(tower, heads, [parse("action=like")], [Calibration([-3.0, 3.0], [0.0, 1.0])])
    of.catalogue = Catalogue(ITEMS + 1, {"item_genre": np.array(["", *["rock"] * ITEMS])})
    return of


@pytest.mark.parametrize("make", [Exact, Approximate])
def test_new_items_are_found_by_what_is_known_of_them(taught, make):
    taught.index = make(taught.ranker.items)
    new = pa.table({"item": ["new-1", "new-2"], "item_genre": ["jazz", "folk"]})
    assert taught.add_items(new) == ITEMS + 2
    vectors, user = taught.ranker.extras.content(torch.from_numpy(features(new))), taught.ranker.users([History((3, 4))])[0]
    (jazz,) = listed(taught, Query(History((3, 4)), 5, rules=Rules(where={"item_genre": "jazz"})))
    assert [taught.ranker.names[token] for token in jazz.tokens] == ["new-1"]
    assert jazz.scores == pytest.approx([float(vectors[0] @ user)], abs=1e-5)
    (every,) = listed(taught, Query(History((3, 4)), 62))
    assert set(taught.ranker.tokens(["new-1", "new-2"])) <= set(every.tokens) and len(every.tokens) == ITEMS + 2


def test_new_items_with_a_text_for_a_number_are_refused_and_change_nothing(taught):
    taught.catalogue.attributes["item_year"] = np.full(ITEMS + 1, 2001.0)
    with pytest.raises(TenfoldError, match="'item_year' is a number"):
        taught.add_items(pa.table({"item": ["new"], "item_genre": ["jazz"], "item_year": ["soon"]}))
    assert taught.ranker.tokens(["new"]) == [0] and len(taught.ranker.items) == taught.catalogue.size == ITEMS + 1


def test_of_several_rows_of_a_new_item_the_first_counts_and_no_new_item_is_no_error(taught):
    twice = pa.table({"item": ["new", "item-3", "new"], "item_genre": ["jazz", "folk", "rock"]})
    assert taught.add_items(twice) == ITEMS + 1 == len(taught.ranker.items) - 1
    first = taught.ranker.extras.content(torch.from_numpy(features(twice.slice(0, 1))))[0]
    assert torch.allclose(taught.ranker.items[-1], first, atol=1e-6) and taught.catalogue.attributes["item_genre"][-1] == "jazz"
    for nothing in (twice, twice.slice(0, 0), pa.table({"item": ["item-3"], "item_vector": [[1.0, 2.0]]})):
        assert taught.add_items(nothing) == ITEMS + 1


@pytest.mark.parametrize(
    ("vector", "said"), [([[1.0, 2.0]], "trained with 512"), (["words"], "lists of numbers"), ([3.0], "lists of numbers")]
)
def test_new_items_of_other_columns_than_the_training_s_are_said_and_change_nothing(taught, vector, said):
    with pytest.raises(TenfoldError, match=said):
        taught.add_items(pa.table({"item": ["new"], "item_genre": ["jazz"], "item_vector": vector}))
    assert taught.ranker.tokens(["new"]) == [0] and len(taught.ranker.items) == ITEMS + 1


def test_objectives_decide_where_they_are_asked_for(taught):
    history, candidates = History((3, 4, 5)), list(range(6, 40))
    alone = {c: taught.ranker.predict(history, [c])["action=like"][0] for c in candidates}
    (liked,) = listed(taught, Query(history, 99, candidates, objectives={"action=like": 2.0}))
    assert liked.scores == pytest.approx([2 * alone[token] for token in liked.tokens], abs=1e-5)
    assert liked.scores == sorted(liked.scores, reverse=True) and set(liked.tokens) == set(candidates)
    (both,) = listed(taught, Query(history, 99, candidates, objectives={"action=like": 1.0, "next": 0.5}))
    logits = dict(zip(candidates, taught.ranker.score([history], candidates)[0], strict=True))
    assert both.scores == pytest.approx([alone[token] + 0.5 * logits[token] for token in both.tokens], abs=1e-4)
    (wrong,) = listed(taught, Query(history, 9, candidates, objectives={"likes": 1.0}))
    assert isinstance(wrong, TenfoldError) and "predicts no 'likes'" in str(wrong)


def test_a_catalogue_of_one_and_an_empty_history_are_no_errors(tmp_path):
    one = Recommender.load(made_ranker(tmp_path / "one", 1, 16, 10))
    assert listed(one, Query(History(()), 10))[0].tokens == [1]
    assert listed(one, Query(History((1,)), 10, left_out=frozenset({1})))[0].tokens == []
    assert listed(one, Query(History(()), 10, [0, 1, 1]))[0].tokens == [1]


def test_attributes_are_read_by_the_items_names(tmp_path):
    columns = {"item": ["b", "z", "a"], "genre": ["x", None, "y"], "year": [2001, 2002, None]}
    pa.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("item,genre,year\nb,x,2001\nz,,2002\na,y,\n")
    (tmp_path / "t.jsonl").write_text('{"item": "b", "genre": "x", "year": 2001}\n{"item": "a", "genre": "y"}\n')
    (tmp_path / "twice.csv").write_text("item,genre,year\nb,x,2001\na,y,\nb,z,1900\n")
    for name in ("t.parquet", "t.csv", "t.jsonl", "twice.csv"):
        found = read_catalogue(tmp_path / name, ["<start>", "a", "b", "c"])
        assert found.attributes["genre"].tolist() == ["", "y", "x", ""]
        assert np.array_equal(found.attributes["year"], [np.nan, np.nan, 2001, np.nan], equal_nan=True)
    for name, text, said in (("n.csv", "thing\n1\n", "no column 'item'"), ("u.csv", "item\nq\n", "none of the model's items")):
        (tmp_path / name).write_text(text)
        with pytest.raises(TenfoldError, match=said):
            read_catalogue(tmp_path / name, ["<start>", "a"])


@pytest.fixture(scope="module")
def worked(tmp_path_factory):
    return made_ranker(tmp_path_factory.mktemp("ranker") / "r", ITEMS, 16, 20) / "model"


def test_the_worker_answers_many_at_once_and_drops_those_who_left(worked):
    async def work():
        worker = RankWorker(EngineOptions(worked, max_num_seqs=8, threads=1))
        await worker.start()
        queries = [Query(History((1 + i % ITEMS,)), 3, left_out=frozenset({1 + i % ITEMS})) for i in range(50)]
        tasks = [asyncio.create_task(worker.recommend(query)) for query in queries]
        await asyncio.sleep(0)
        for task in tasks[10:20]:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert worker.in_flight == 0 and worker.is_alive
        right = worker.recommender.answer(queries, np.random.default_rng(0))
        worker.stop()
        return found, right

    found, right = asyncio.run(work())
    for i, (one, expected) in enumerate(zip(found, right, strict=True)):
        assert isinstance(one, asyncio.CancelledError) if 10 <= i < 20 else one.tokens == expected.tokens


def test_whoever_waited_too_long_is_told_and_a_stopped_worker_says_so(worked):
    async def work():
        worker = RankWorker(EngineOptions(worked, max_num_seqs=1, threads=1), WorkerSettings(max_wait_ms=1e-6))
        await worker.start()
        late = await asyncio.gather(*(worker.recommend(Query(History(()), 3)) for _ in range(3)), return_exceptions=True)
        worker.stop()
        await asyncio.sleep(0)
        with pytest.raises(BackendStopped):
            await worker.recommend(Query(History(()), 3))
        return late

    late = asyncio.run(work())
    assert all(isinstance(one, ApiError) and one.status == 503 and one.headers["Retry-After"] for one in late)
