"""Batches as a pure function of (seed, step)."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenfold.data.text.batches import permute, row_count, train_batch, validation_batches, validation_bytes
from tenfold.spec.errors import TenfoldError


@given(size=st.integers(1, 5000), seed=st.integers(0, 2**31), epoch=st.integers(0, 100))
def test_permute_is_a_permutation(size, seed, epoch):
    assert sorted(permute(np.arange(size), size, seed, epoch)) == list(range(size))


def test_seeds_and_epochs_give_other_orders():
    orders = [tuple(permute(np.arange(1000), 1000, s, e)) for s in range(3) for e in range(3)]
    assert len(set(orders)) == 9
    # Neighbours do not stay neighbours.
    assert np.mean(np.abs(np.diff(orders[0])) == 1) < 0.02


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(step=st.integers(0, 300), world=st.sampled_from([1, 2, 3, 6]))
def test_the_parts_of_all_processes_make_up_the_batch(corpus, step, world):
    whole = train_batch(corpus, step, batch_size=6, seq_len=64, seed=3)
    parts = [train_batch(corpus, step, batch_size=6, seq_len=64, seed=3, rank=r, world=world) for r in range(world)]
    assert np.array_equal(whole.tokens, np.concatenate([p.tokens for p in parts]))


def test_an_epoch_reads_every_row_once(corpus):
    rows = row_count(corpus, "train", 512)
    seen = [train_batch(corpus, s, batch_size=1, seq_len=512, seed=0).tokens[0].tobytes() for s in range(rows)]
    stream = np.asarray(corpus.tokens("train"))[: rows * 512].astype(np.int64).reshape(rows, 512)
    assert sorted(seen) == sorted(row.tobytes() for row in stream)


def test_documents_are_numbered_and_no_target_crosses_them(corpus):
    for batch in validation_batches(corpus, batch_size=4, seq_len=128):
        assert (batch.targets[batch.tokens == 1] == -100).all()
        inside = batch.targets[:, :-1] >= 0
        assert (batch.targets[:, :-1][inside] == batch.tokens[:, 1:][inside]).all()
        steps = np.diff(batch.document, axis=1)
        assert ((steps == 1) == (batch.tokens[:, :-1] == 1)).all()


def test_bits_per_byte_divides_by_the_bytes_of_the_predicted_text(corpus):
    targets = np.concatenate([b.targets[b.targets >= 0] for b in validation_batches(corpus, batch_size=8, seq_len=128)])
    text = corpus.tokenizer.decode(targets.tolist())
    # Rows cut characters of several bytes in two; the corpus is nearly all ASCII.
    assert validation_bytes(corpus, seq_len=128) == pytest.approx(len(text.encode()), rel=1e-3)


def test_a_batch_that_does_not_divide_is_refused(corpus):
    with pytest.raises(TenfoldError, match="cannot be shared equally"):
        train_batch(corpus, 0, batch_size=5, seq_len=64, seed=0, world=2)
