"""Rankers: blocks and losses against their equations written out slowly, candidates, metrics and baselines by brute force."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.vq import kmeans, vq

from tenfold.data.interactions.events import Queries
from tenfold.data.interactions.interactions import open_interactions
from tenfold.data.interactions.splits import Split
from tenfold.model.build import make_model
from tenfold.model.io.huggingface import read_model, write_model
from tenfold.model.loss import cross_entropy
from tenfold.rank.baselines import ease, item_knn, markov, popularity
from tenfold.rank.content import SemanticIds, codes_of, residual_centres
from tenfold.rank.extras import Extras, outputs_on
from tenfold.rank.losses import binary_cross_entropy, sampled_softmax
from tenfold.rank.metrics import difference, evaluate, quality, summary
from tenfold.rank.objectives import Calibration, Objective, calibrate, calibration_error, objective_loss, parse
from tenfold.rank.ranker import History, Ranker
from tenfold.rank.serving.recommender import Query, Recommender
from tenfold.spec.errors import TenfoldError
from tenfold.spec.shapes import shape_of


def drawn_model(family, vocab=30, width=32, context=13, seed=0):
    """A model all of whose weights are drawn, those that begin at zero too."""
    torch.manual_seed(seed)
    model = make_model(replace(shape_of(family, width, vocab), context=context))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.double()


def norm(x, eps):
    return (x - x.mean()) / torch.sqrt(((x - x.mean()) ** 2).mean() + eps)


def slow_hstu(model, tokens, times):
    """One row through HSTU, by loops over positions, keys and heads."""
    spec, silu = model.spec, torch.nn.functional.silu
    x = [model.embedding.weight[t] * math.sqrt(spec.dim) + model.positions[0][i] for i, t in enumerate(tokens)]
    for block in model.blocks:
        h, d, mixed = spec.n_heads, spec.head_dim, []
        parts = [silu(block.uvqk.weight @ norm(row, 1e-6)).view(4, h, d) for row in x]
        for i, (u, _, q, _) in enumerate(parts):
            heads = []
            for head in range(h):
                total = torch.zeros(d, dtype=torch.float64)
                for j in range(i + 1):
                    seconds = max(1, abs(times[i + 1] - times[j]))
                    bucket = min(128, int(math.log(seconds) / 0.301))
                    bias = block.position_bias[j - i + spec.context - 1] + block.time_bias[bucket]
                    weight = silu(q[head] @ parts[j][3][head] + bias) / spec.context
                    total = total + weight * parts[j][1][head]
                heads.append(total)
            mixed.append(u.flatten() * norm(torch.cat(heads), 1e-6))
        x = [row + block.wo.weight @ m + block.wo.bias for row, m in zip(x, mixed, strict=True)]
    return torch.stack([row / max(float(row.norm()), 1e-6) / 0.05 for row in x])


def slow_llama(model, tokens):
    """One row through gated Llama blocks, by loops over positions, keys and heads."""
    spec, sigmoid, silu = model.spec, torch.sigmoid, torch.nn.functional.silu

    def rms(x, weight):
        return x / torch.sqrt((x**2).mean() + spec.norm_eps) * weight

    def turned(head, position):
        out = head.clone()
        for pair in range(spec.head_dim // 2):
            angle = position / spec.rope_theta ** (2 * pair / spec.head_dim)
            a, b = head[2 * pair], head[2 * pair + 1]
            out[2 * pair], out[2 * pair + 1] = (
                a * math.cos(angle) - b * math.sin(angle),
                a * math.sin(angle) + b * math.cos(angle),
            )
        return out

    x = [model.embedding.weight[t] for t in tokens]
    for block in model.blocks:
        qkv = [(block.attention.wqkv.weight @ rms(row, block.attention_norm.weight)).view(spec.n_heads, 3, -1) for row in x]
        out = []
        for i, row in enumerate(x):
            heads = []
            for head in range(spec.n_heads):
                q = turned(qkv[i][head, 0], i)
                scores = torch.stack([q @ turned(qkv[j][head, 1], j) for j in range(i + 1)]) / math.sqrt(spec.head_dim)
                heads.append(sum(p * qkv[j][head, 2] for j, p in enumerate(scores.softmax(0))))
            row = row + block.attention.wo.weight @ torch.cat(heads) * sigmoid(block.attention_gate.weight @ row)
            n = rms(row, block.ffn_norm.weight)
            fed = block.ffn.w2.weight @ (silu(block.ffn.w1.weight @ n) * (block.ffn.w3.weight @ n))
            out.append(row + fed * sigmoid(block.ffn_gate.weight @ row))
        x = out
    return torch.stack([rms(row, model.norm.weight) for row in x])


TOKENS, TIMES = [0, 3, 7, 7, 29, 1, 12], [100, 100, 160, 90_000, 90_000, 10**8, 10**9, 2 * 10**9]


@torch.no_grad()
def test_hstu_is_that_of_its_equations():
    model = drawn_model("hstu")
    found = model.hidden(torch.tensor([TOKENS]), times=torch.tensor([TIMES]))[0]
    assert torch.allclose(found, slow_hstu(model, TOKENS, TIMES), rtol=1e-5, atol=1e-5)
    items = model.embedding.weight / model.embedding.weight.norm(dim=1, keepdim=True)
    assert torch.allclose(model(torch.tensor([TOKENS]), times=torch.tensor([TIMES]))[0], (found @ items.T).float(), atol=1e-4)


@torch.no_grad()
def test_the_gated_llama_is_that_of_its_equations():
    model = drawn_model("rank")
    found = model.hidden(torch.tensor([TOKENS]))[0]
    assert torch.allclose(found, slow_llama(model, TOKENS), rtol=1e-5, atol=1e-5)


def test_gradients_of_the_time_and_position_biases_are_those_of_differences():
    model = drawn_model("hstu")
    tokens, times = torch.tensor([TOKENS, TOKENS[::-1]]), torch.tensor([TIMES, [t // 7 for t in TIMES]])
    along = torch.randn(2, len(TOKENS), 32, dtype=torch.float64)

    def value():
        return (model.hidden(tokens, times=times) * along).sum()

    value().backward()
    for p, at in ((model.blocks[0].time_bias, 30), (model.blocks[1].position_bias, 11)):
        values = []
        for step in (-1e-5, 1e-5):
            with torch.no_grad():
                p[at] += step
                values.append(float(value()))
                p[at] -= step
        assert float(p.grad[at]) == pytest.approx((values[1] - values[0]) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("family", ["rank", "hstu"])
@torch.no_grad()
def test_candidates_see_the_history_and_not_each_other(family):
    model, now = drawn_model(family), 2 * 10**9
    candidates = torch.tensor([4, 9, 4, 21])
    found = model.beside(torch.tensor(TOKENS), candidates, torch.tensor([*TIMES[:7], now]))
    for state, candidate in zip(found, candidates.tolist(), strict=True):
        alone = model.hidden(torch.tensor([[*TOKENS, candidate]]), times=torch.tensor([[*TIMES[:7], now]]))[0, -1]
        assert torch.allclose(state, alone, atol=1e-9)


def ranker_of(model, extras=Extras(None, None, [], [])):
    """A ranker of a drawn model, whose items are named by their tokens."""
    items = model.item_vectors(model.embedding.weight).detach().float()
    return Ranker(model.float(), [str(token) for token in range(model.spec.vocab_size)], items, extras)


def test_histories_with_times_without_and_empty_ones_are_seen_as_each_is_alone():
    timed, empty = History((3, 7, 29), (100, 160, 90_000), 10**6), History(())
    histories = [timed, History((3, 7, 29)), empty, History((5,), (70,), 80), History((), (), 10**6)]
    ranker = ranker_of(drawn_model("hstu"))
    alone = torch.cat([ranker.users([history]) for history in histories])
    assert torch.allclose(ranker.users(histories), alone, atol=1e-4)
    assert not torch.allclose(alone[0], alone[1], atol=0.01) and torch.allclose(alone[2], alone[4])
    with torch.no_grad():
        slow = slow_hstu(ranker.model.double(), [0, 3, 7, 29], [100, 100, 160, 90_000, 10**6])
    assert torch.allclose(alone[0], slow[-1].float(), atol=1e-3)
    ranker.model.float()
    of, rng = Recommender(ranker), np.random.default_rng(0)
    first = of.answer([Query(history, 5) for history in histories], rng)
    assert of.answer([Query(timed, 5)], rng)[0].scores == pytest.approx(first[0].scores)
    assert first[0].scores == pytest.approx(np.sort(ranker.score([timed])[0][1:])[::-1][:5], rel=1e-4)


def test_heads_are_calibrated_on_what_they_say_of_a_candidate(small):
    model, heads = drawn_model("hstu", small.vocab_size).float(), torch.nn.Linear(32, 1)
    torch.nn.init.normal_(heads.weight)
    model.objectives = heads
    outputs, events = outputs_on(model, small, "test", 12)
    ranker = ranker_of(model, Extras(None, heads.requires_grad_(False), [parse("like")], [Calibration([-99, 99], [-99, 99])]))
    assert len(events) >= 30
    for output, event in zip(outputs[:, 0], events, strict=True):
        before = slice(small.offsets[small.user_of[event]], event)
        history = History(small.items[before].tolist(), small.times[before].tolist(), float(small.times[event]))
        assert ranker.predict(history, small.items[[event]])["like"] == pytest.approx([output], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("family", ["rank", "hstu"])
def test_a_written_model_is_read_back_and_counts_its_weights(family, tmp_path):
    model = drawn_model(family).float()
    write_model(model, tmp_path / "model")
    read = read_model(tmp_path / "model")
    assert type(read) is type(model) and replace(read.spec, name="") == replace(model.spec, name="")
    assert {n: p.shape for n, p in read.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert all((p == dict(model.named_parameters())[n]).all() for n, p in read.named_parameters())
    assert model.spec.parameters().total == sum(p.numel() for p in model.parameters())


def some_batch(n=6, vocab=11, dim=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden, items = torch.randn(n, dim, generator=g), torch.randn(vocab, dim, generator=g)
    targets = torch.randint(0, vocab, (n,), generator=g)
    targets[2:3] = -100
    return hidden, items, targets


def test_the_sampled_softmax_of_the_whole_catalogue_is_the_full_one():
    hidden, items, targets = some_batch()
    every = torch.randperm(11)
    found = sampled_softmax(hidden, items, targets, every, torch.full((11,), -math.log(11)))
    assert float(found) == pytest.approx(float(cross_entropy(hidden, items, targets)[0]), rel=1e-5)


def test_the_sampled_softmax_estimates_the_sum_over_the_catalogue_whatever_the_negatives_are_drawn_by():
    hidden, items, targets = some_batch(n=1)
    q = torch.arange(1.0, 12.0) / 66
    generator, draws = torch.Generator().manual_seed(0), 4000
    sums = []
    for _ in range(draws):
        negatives = torch.multinomial(q, 8, True, generator=generator)
        loss = sampled_softmax(hidden, items, targets, negatives, q[negatives].log())
        sums.append(float((loss + hidden @ items[targets[0]]).exp()))
    true = float((hidden @ items.T).exp().sum())
    assert abs(np.mean(sums) - true) < 4 * np.std(sums) / math.sqrt(draws)


def test_binary_cross_entropy_is_that_of_its_terms():
    hidden, items, targets = some_batch()
    negatives = torch.tensor([1, 1, 4])
    total = 0.0
    for state, target in zip(hidden, targets.tolist(), strict=True):
        if target < 0:
            continue
        others = [-math.log(1 - torch.sigmoid(state @ items[n])) if n != target else 0.0 for n in negatives.tolist()]
        total += -math.log(torch.sigmoid(state @ items[target])) + sum(others) / 3
    assert float(binary_cross_entropy(hidden, items, targets, negatives)) == pytest.approx(total, rel=1e-5)


def test_objectives_are_read_tested_and_weighed_where_they_are_known(tmp_path):
    table = {"user": ["u"] * 4, "item": list("pqrs"), "time": [1, 2, 3, 4], "rating": [5.0, None, 3.0, 4.0], "act": list("abab")}
    pa.parquet.write_table(pa.table(table), tmp_path / "t.parquet")
    data = open_interactions(str(tmp_path / "t.parquet"), tmp_path, Split("leave-one-out"))
    like, act, amount = parse("rating >= 4"), parse("act=a"), parse("rating")
    assert np.array_equal(like.of(data), [1, np.nan, 0, 1], equal_nan=True) and act.of(data).tolist() == [1, 0, 1, 0]
    assert np.allclose(amount.of(data), np.log1p([5, np.nan, 3, 4]), equal_nan=True)
    outputs, values = torch.tensor([[0.5, 1.0], [2.0, 0.0]]), torch.tensor([[1.0, 3.0], [float("nan"), 1.0]])
    loss = objective_loss(outputs, values, [like, amount])
    assert float(loss) == pytest.approx(-math.log(1 / (1 + math.exp(-0.5))) + (2.0**2 + 1.0**2) / 2, rel=1e-6)
    for text, said in (("rating >= many", "no objective"), ("act>=2", "needs numbers"), ("none", "no column 'none'")):
        with pytest.raises(TenfoldError, match=said):
            parse(text).of(data)


def test_a_calibration_rises_and_says_what_comes():
    rng = np.random.default_rng(0)
    outputs = rng.normal(0, 2, 20_000)
    came = (rng.random(20_000) < 0.3 / (1 + np.exp(-outputs))).astype(float)
    curve = calibrate(outputs[:10_000], came[:10_000], Objective("like", "like", "=", "1"))
    said = curve(outputs[10_000:])
    assert (np.diff(curve(np.sort(outputs))) >= 0).all() and calibration_error(said, came[10_000:]) < 0.02
    assert calibration_error(1 / (1 + np.exp(-outputs)), came) > 0.2


def test_equal_outputs_are_calibrated_to_the_mean_of_their_values():
    like = Objective("like", "like", "=", "1")
    assert calibrate(np.zeros(4), np.array([0.0, 0.0, 1.0, 1.0]), like)(np.zeros(2)).tolist() == [0.5, 0.5]
    curve = calibrate(np.array([1.0, 0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0, 0.0]), like)
    assert curve(np.array([0.0, 0.5, 1.0])).tolist() == [0.0, 0.25, 0.5]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_measures_are_their_means_over_all_orders_of_ties(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, (8, 14)).astype(float)
    histories = [rng.choice(np.arange(1, 14), rng.integers(0, 4), replace=False) for _ in scores]
    targets = rng.integers(1, 16, 8)  # some past the vocabulary
    found = quality(scores, targets, histories)
    for i, (row, history, target) in enumerate(zip(scores, histories, targets, strict=True)):
        if target >= 14:
            assert all(values[i] == 0 for values in found.values())
            continue
        left = [j for j in range(1, 14) if j == target or j not in history]
        tied = [j for j in left if row[j] == row[target]]
        first = sum(row[j] > row[target] for j in left)
        places = [first + order.index(target) for order in itertools.islice(itertools.permutations(tied), 5040)]
        if len(tied) <= 7:
            assert found["hit_rate_10"][i] == pytest.approx(np.mean([place < 10 for place in places]))
            assert found["ndcg_10"][i] == pytest.approx(np.mean([1 / np.log2(p + 2) if p < 10 else 0 for p in places]))
            assert found["mrr"][i] == pytest.approx(np.mean([1 / (place + 1) for place in places]))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 80), st.integers(1, 8))
def test_each_level_of_semantic_ids_is_the_nearest_centre_and_leaves_less(seed, items, codes):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(items, 6)).astype(np.float32)
    features[rng.integers(0, items, items // 2)] = features[0]  # items of the same content
    centres = residual_centres(features, 3, seed, codes)
    found, left = codes_of(features, centres), features.astype(np.float64)
    for level in range(3):
        away = ((left[:, None] - centres[level]) ** 2).sum(2)
        assert np.allclose(away[np.arange(items), found[:, level]], away.min(1))
        before, left = (np.unique(left, axis=0) ** 2).sum(), left - centres[level][found[:, level]]
        assert (np.unique(left, axis=0) ** 2).sum() <= before * (1 + 1e-6)
    assert (found[(features == features[0]).all(1)] == found[0]).all()
    again = codes_of(features[::-1], residual_centres(features, 3, seed, codes))
    assert (again == found[::-1]).all()


def test_semantic_ids_lose_no_more_than_another_k_means():
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(20, 8))[rng.integers(0, 20, 600)] * 3 + rng.normal(size=(600, 8))).astype(np.float32)
    centres = residual_centres(features, 1, 0, 20)
    ours = ((features - centres[0, codes_of(features, centres)[:, 0]]) ** 2).sum()
    theirs, _ = kmeans(features, 20, iter=3, rng=0)  # the best of three, by another library
    assert ours <= (vq(features, theirs)[1] ** 2).sum()


def test_an_item_of_which_nothing_is_known_has_no_semantic_id():
    features = np.zeros((4, 3), np.float32)
    assert not residual_centres(features, 2, 0, 5).any()
    features[1:3] = [[1, 2, 3], [-1, 0, 1]]
    ids = SemanticIds(torch.from_numpy(residual_centres(features, 2, 0, 5)), 16)
    vectors, rows = ids(ids.read(features)), ids.read(features)
    assert (rows[[0, 3]] == 0).all() and not vectors[[0, 3]].any() and (rows[1] != rows[2]).any()
    assert torch.allclose(vectors[1], ids.codes.weight[rows[1]].sum(0)) and (rows[:, 0] <= 5).all() and (rows[1:3, 1] > 5).all()
    vectors.square().sum().backward()
    assert not ids.codes.weight.grad[0].any() and ids.codes.weight.grad[rows[1]].any()


def test_scores_that_are_no_numbers_lie_last_and_their_rivals_above():
    for target in (np.nan, 1.0):
        scores = np.full((1, 15), np.nan)
        scores[0, 2] = target
        found = quality(scores, np.array([2]), [np.empty(0, np.int64)])
        assert [found[name][0] for name in ("hit_rate_10", "ndcg_10", "mrr")] == pytest.approx([0, 0, 1 / 14])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    rng = np.random.default_rng(0)
    rows = {(u, int(i)) for u in range(40) for i in (rng.choice(12, 6, replace=False) * (1 + u % 2)) % 17}
    table = [(u, i, t * 86400) for t, (u, i) in enumerate(sorted(rows, key=lambda row: hash(row) % 997))]
    names = dict(zip(("user", "item", "time"), map(list, zip(*table, strict=True)), strict=True))
    pa.parquet.write_table(pa.table(names), folder / "t.parquet")
    return open_interactions(str(folder / "t.parquet"), folder, Split("leave-one-out"))


def had(data):
    matrix = np.zeros((len(data.offsets) - 1, data.vocab_size))
    matrix[data.user_of[data.training], data.items[data.training]] = 1
    return matrix


def one_query(*history):
    h = np.array(history, np.int64)
    return Queries(np.zeros(1, np.int64), [h], [h * 0], np.array([1]), np.array([0]))


def test_ease_is_the_ridge_regression_of_each_item_on_the_others(small):
    x, scores = had(small), ease(small, 3.0)(one_query(2, 5))[0]
    for item in range(1, small.vocab_size):
        others = [j for j in range(small.vocab_size) if j != item]
        a = x[:, others]
        b = np.linalg.solve(a.T @ a + 3.0 * np.eye(len(others)), a.T @ x[:, item])
        assert scores[item] == pytest.approx(sum(b[others.index(j)] for j in (2, 5) if j != item), abs=1e-6)


def test_item_knn_adds_the_cosines_of_near_items(small):
    x, scores = had(small), item_knn(small, 3)(one_query(4))[0]
    lengths = np.linalg.norm(x, axis=0)
    cosines = x.T @ x / (np.outer(lengths, lengths) + 10.0)
    np.fill_diagonal(cosines, 0)
    nearest = sorted(cosines[4])[-3]
    assert scores == pytest.approx(np.where(cosines[4] >= nearest, cosines[4], 0))


def test_popularity_counts_what_may_be_learned(small):
    counts = had(small).sum(0)
    assert (popularity(small)(one_query(1))[0] == counts).all()
    last = small.times[small.training].max()
    recent = small.training[small.times[small.training] > last - 30 * 86400]
    assert (popularity(small, 30 * 86400)(one_query(1))[0] == np.bincount(small.items[recent], minlength=small.vocab_size)).all()


@pytest.mark.parametrize("reach", [1, 3])
def test_markov_adds_what_followed_the_last_items_the_nearer_the_more(small, reach):
    follows = np.zeros((small.vocab_size, small.vocab_size))
    for user in range(len(small.offsets) - 1):
        h = [0, *small.items[small.offsets[user] : small.offsets[user] + small.ends.training[user]].tolist()]
        for i, j in itertools.combinations(range(len(h)), 2):
            follows[h[i], h[j]] += 0.8 ** (j - i - 1) * (j - i <= reach)
    shares = follows / np.maximum(1e-12, follows.sum(1, keepdims=True))
    for history in ([], [3], [5, 2, 4, 3]):
        last = [0, *history][::-1][:reach]
        expected = sum(0.8**i * shares[item] for i, item in enumerate(last))
        assert markov(small, reach)(one_query(*history))[0] == pytest.approx(expected, abs=2e-6)


def test_means_are_over_users_and_a_difference_of_equals_is_none(small):
    found = evaluate(popularity(small), small, small.held_out("test"), logits=False)
    assert len(found.users) == found.queries and 0 < summary(found)["coverage"] <= 1 and 0 <= summary(found)["gini"] <= 1
    assert difference(found, found, "ndcg_10") == {"mean": 0, "low": 0, "high": 0}
    random = evaluate(lambda q: np.zeros((len(q.targets), small.vocab_size)), small, small.held_out("test"))
    left = [small.vocab_size - 1 - len(set(h.tolist())) for h in small.held_out("test").histories]
    assert summary(random)["hit_rate_10"] == pytest.approx(np.mean([min(1, 10 / n) for n in left]), abs=0.05)
    assert summary(random)["calibration_error"] < 0.05
