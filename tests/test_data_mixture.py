"""Mixtures: shares, exact counters, orders that no change of weights disturbs, and what is refused."""

import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_configs import run_config

from tenfold.data.text.batches import train_batch
from tenfold.data.text.corpus import build
from tenfold.data.text.mixture import DECK, Mixture, make_mixture
from tenfold.spec.errors import TenfoldError
from tenfold.train.metrics import read_metrics
from tenfold.train.run_file import write_config
from tenfold.train.text import open_text

STDLIB = Path(sysconfig.get_path("stdlib"))


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Three corpora with one tokenizer, that of the first."""
    home = tmp_path_factory.mktemp("mixed")
    made = {}
    for name in ("asyncio", "email", "unittest"):
        first = next(iter(made.values())).directory if made else None
        made[name] = build(STDLIB / name, home / name, vocab_size=400, tokenizer_from=first, quiet=True)
    return made


def names_of(mixture, step, **rows):
    """Which source each row of a batch is from: looked up in the corpora's own streams."""
    found = []
    for row in mixture.batch(step, **rows).tokens:
        for name, corpus in mixture.corpora.items():
            stream = np.asarray(corpus.tokens("train"))
            whole = (len(stream) - 1) // rows["seq_len"]
            if (stream[: whole * rows["seq_len"]].reshape(whole, -1) == row).all(axis=1).any():
                found.append(name)
    return found


WEIGHTS = st.one_of(st.floats(0, 1), st.lists(st.floats(0, 1), min_size=1, max_size=4))
IGNORE = {"suppress_health_check": [HealthCheck.function_scoped_fixture], "deadline": None}


@settings(**IGNORE, max_examples=15)
@given(
    weights=st.lists(st.lists(st.sampled_from([0.0, 0.001, 0.2, 1.0, 3.0]), min_size=3, max_size=3), min_size=3, max_size=3),
    step=st.integers(0, 40),
)
def test_counters_are_the_rows_that_were_given(corpora, weights, step):
    weights[0][0] = 0.5  # some weight in every phase
    schedule = {name: [(0, w[0]), (7, w[1] + 0.01), (19, w[2] + 0.01)] for name, w in zip(corpora, weights, strict=True)}
    mixture = make_mixture(corpora, schedule)
    rows = {"batch_size": 6, "seq_len": 96, "seed": 5}
    before, after = (mixture.drawn(s, 6, 5) for s in (step, step + 1))
    given_now = names_of(mixture, step, **rows)
    assert len(given_now) == 6
    assert {name: after[name] - before[name] for name in corpora} == {name: given_now.count(name) for name in corpora}
    assert sum(after.values()) == 6 * (step + 1)


@settings(**IGNORE, max_examples=25)
@given(weights=st.lists(st.floats(0.01, 1), min_size=3, max_size=3), batch_size=st.integers(1, 3000), seed=st.integers(0, 99))
def test_shares_are_the_weights_over_every_deck_and_at_any_step(corpora, weights, batch_size, seed):
    mixture = make_mixture(corpora, dict(zip(corpora, weights, strict=True)))
    expected = np.array(weights) / sum(weights)
    assert np.allclose(list(mixture.shares(0).values()), expected, atol=2 / DECK)
    step = 10**9 // batch_size  # the counters of a long run take no longer
    drawn = np.array(list(mixture.drawn(step, batch_size, seed).values()))
    assert drawn.sum() == step * batch_size
    assert np.abs(drawn / drawn.sum() - expected).max() < 2 / DECK


def test_a_source_goes_through_its_own_rows_whatever_the_weights_do(corpora):
    rows = {"batch_size": 8, "seq_len": 64, "seed": 3}
    steady = make_mixture(corpora, dict.fromkeys(corpora, 1.0))
    changing = make_mixture(corpora, {"asyncio": 1.0, "email": [(0, 3.0), (10, 0.0)], "unittest": [(0, 0.0), (5, 2.0)]})
    for mixture in (steady, changing):
        seen = {name: [] for name in corpora}
        for step in range(30):
            batch = mixture.batch(step, **rows)
            for row, name in zip(batch.tokens, names_of(mixture, step, **rows), strict=True):
                seen[name].append(row)
        for name, corpus in corpora.items():
            alone = np.concatenate([train_batch(corpus, s, **rows).tokens for s in range(40)])
            assert np.array_equal(seen[name], alone[: len(seen[name])])
    assert changing.drawn(30, 8, 3)["email"] == changing.drawn(10, 8, 3)["email"] > 0


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({"a": -0.1, "b": 1.0}, "weight of 'a' .* is -0.1"),
        ({"a": float("nan"), "b": 1.0}, "weight of 'a' .* is nan"),
        ({"a": 0.0, "b": 0.0}, "sum to zero"),
        ({"a": [(0, 1.0), (5, 0.0)], "b": [(0, 1.0), (3, 0.0)]}, "sum to zero"),
        ({"a": [(1, 1.0)], "b": 1.0}, "'a' .* must begin with step 0"),
        ({"a": [], "b": 1.0}, "'a' .* must begin with step 0"),
        ({"a": [(0, 1.0), (5, 0.1), (5, 0.2)], "b": 1.0}, "steps .* 'a' .* must rise"),
    ],
)
def test_weights_that_are_none_are_refused(corpora, weights, sentence):
    pair = dict(zip(weights, corpora.values(), strict=False))
    with pytest.raises(TenfoldError, match=sentence):
        make_mixture(pair, weights)


def test_another_tokenizer_and_too_many_readings_are_refused(corpora, corpus):
    with pytest.raises(TenfoldError, match=r"'other' has another tokenizer than 'asyncio'.*--tokenizer-from"):
        make_mixture({"asyncio": corpora["asyncio"], "other": corpus}, {"asyncio": 1.0, "other": 1.0})
    with pytest.raises(TenfoldError, match="another tokenizer"):
        build(STDLIB / "email", corpora["email"].directory, vocab_size=400, tokenizer_from=corpus.directory, quiet=True)
    mixture = make_mixture(corpora, {"asyncio": 1.0, "email": 0.01, "unittest": 0.0})
    rows = {"batch_size": 4, "seq_len": 128, "seed": 0}
    mixture.require_rows(10, **rows, max_epochs=1)
    with pytest.raises(TenfoldError, match=r"reads 'asyncio' \d+\.\d times where 1 are allowed"):
        mixture.require_rows(10_000, **rows, max_epochs=1)
    with pytest.raises(TenfoldError, match="at least one corpus"):
        make_mixture({}, {})


FIELDS = {
    "tokens": 4096, "model": {"width": 32}, "vocab_size": 300, "seq_len": 16, "batch_size": 4, "device": "cpu", "log_every": 1,
    "max_epochs": 1e9, "evaluate_tokens": 2000,
}  # fmt: skip


def test_a_run_file_says_the_mixture(tmp_path):
    entries = [{"corpus": str(STDLIB / "json")}, {"corpus": str(STDLIB / "email"), "weight": [[0, 1], [10, 3.0]]}]
    mixture = open_text(run_config(**FIELDS, mixture=entries), tmp_path, quiet=True)
    assert isinstance(mixture, Mixture)
    assert mixture.shares(0) == {"json": 0.5, "email": 0.5} and mixture.shares(10) == {"json": 0.25, "email": 0.75}
    for wrong, sentence in (
        ([*entries, {"corpus": "email"}], "two corpora named 'email'"),
        ([{"corpus": "json", "wieght": 1}], "wieght"),
        ([{"weight": 1}], "corpus"),
    ):
        with pytest.raises(TenfoldError, match=sentence):
            open_text(run_config(**FIELDS, mixture=wrong), tmp_path, quiet=True)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_with_the_same_rows_and_counters(tmp_path):
    entries = [{"corpus": str(STDLIB / "json"), "weight": 1}, {"corpus": str(STDLIB / "email"), "weight": [[0, 1], [30, 3]]}]
    write_config(run_config(**FIELDS | {"tokens": 64 * 400}, mixture=entries), tmp_path / "run.toml")
    tenfold = [Path(sys.executable).with_name("tenfold")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole = [*tenfold, "train", tmp_path / "run.toml", "--home", tmp_path, "--out", tmp_path / "whole", "--json"]
    subprocess.run(whole, env=environment, check=True, capture_output=True, timeout=200)
    cut = [*whole[:-2], tmp_path / "cut", "--json"]
    with subprocess.Popen(cut, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        log = tmp_path / "cut" / "run.jsonl"
        while not (log.exists() and sum(e["event"] == "step" for e in read_metrics(log)) > 20):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
    subprocess.run([*tenfold, "resume", tmp_path / "cut", "--json"], env=environment, check=True, capture_output=True, timeout=200)

    def told(name):
        return [(e["step"], e["loss"], e["sources"]) for e in read_metrics(tmp_path / name / "run.jsonl") if e["event"] == "step"]

    assert any(e["event"] == "resume" for e in read_metrics(log))
    assert told("cut") == told("whole")
    step, _, sources = told("whole")[-1]
    assert sum(sources.values()) == step * 64 and 0.6 < sources["email"] / (step * 64) < 0.8
