"""Batches as a pure function of (seed, step)."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenfold.data.images.corpus import ImagesAmongText, build_images
from tenfold.data.text.batches import permute, row_count, train_batch, validation_batches, validation_bytes
from tenfold.data.text.corpus import Corpus
from tenfold.data.text.mixture import make_mixture
from tenfold.spec.vision import VisionSpec

VISION = VisionSpec(image_size=16, patch_size=4, dim=32, n_layers=1, n_heads=2)


@given(size=st.integers(1, 5000), seed=st.integers(0, 2**31), epoch=st.integers(0, 100))
def test_permute_is_a_permutation(size, seed, epoch):
    assert sorted(permute(np.arange(size), size, seed, epoch)) == list(range(size))


def test_seeds_and_epochs_give_other_orders():
    orders = [tuple(permute(np.arange(1000), 1000, s, e)) for s in range(3) for e in range(3)]
    assert len(set(orders)) == 9
    # Neighbours do not stay neighbours.
    assert np.mean(np.abs(np.diff(orders[0])) == 1) < 0.02


@pytest.fixture(scope="module")
def sources(corpus, drawings, tmp_path_factory):
    """`batch` of each kind of source: a corpus, a mixture of it with itself, and images among its text."""
    images = build_images(drawings, tmp_path_factory.mktemp("home") / "images", corpus, VISION)
    return {
        "text": partial(train_batch, corpus),
        "mixture": make_mixture({"one": corpus, "other": corpus}, {"one": [(0, 1.0), (5, 0.2)], "other": 0.5}).batch,
        "images": ImagesAmongText(corpus, images, 0.3).batch,
        "images alone": ImagesAmongText(corpus, images, 1.0).batch,
    }


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    source=st.sampled_from(["text", "mixture", "images", "images alone"]),
    step=st.integers(0, 3000),
    size=st.integers(1, 9),
    cuts=st.lists(st.integers(0, 9), max_size=3),
)
def test_some_rows_are_those_of_the_whole_batch(sources, source, step, size, cuts):
    shape = {"batch_size": size, "seq_len": 64, "seed": 3}
    whole = sources[source](step, **shape)
    assert len(whole.tokens) == size
    edges = sorted({0, size, *(min(cut, size) for cut in cuts)})
    parts = [sources[source](step, slice(first, last), **shape) for first, last in pairwise(edges)]
    for (first, last), part in zip(pairwise(edges), parts, strict=True):
        for field in ("tokens", "targets", "document", "tiles", "tile_ends"):
            ours, theirs = getattr(part, field), getattr(whole[first:last], field)
            assert (ours is None) == (theirs is None) and np.array_equal(ours, theirs), field
    assert sum(part.target_count for part in parts) == (whole.targets >= 0).sum()
    assert np.array_equal(whole.tokens, np.concatenate([part.tokens for part in parts]))
    if whole.tiles is not None:
        assert np.array_equal(whole.tiles, np.concatenate([part.tiles for part in parts]))


def test_only_the_rows_asked_for_are_read(corpus):
    class Counting:
        read = 0

        def __len__(self):
            return len(corpus.tokens("train"))

        def __getitem__(self, positions):
            self.read += positions.size
            return corpus.tokens("train")[positions]

    class Counted(Corpus):
        def tokens(self, split):
            return stream

    stream = Counting()
    train_batch(Counted(corpus.directory, corpus.manifest), 3, slice(2, 4), batch_size=8, seq_len=64, seed=0)
    assert stream.read == 2 * 65


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


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(parts=st.integers(1, 7), size=st.integers(1, 20), limit=st.sampled_from([None, 1, 1000, 5000, 10**9]))
def test_the_parts_of_the_validation_text_are_all_of_it_once(corpus, parts, size, limit):
    shape = {"batch_size": size, "seq_len": 128, "limit_tokens": limit}
    whole = [b for b in validation_batches(corpus, **shape)]
    shares = [[b for b in validation_batches(corpus, **shape, part=(i, parts))] for i in range(parts)]
    assert len({tuple(b.tokens.shape for b in share) for share in shares}) == 1

    def rows(batches):
        return sorted(row.tobytes() for b in batches for row in b.targets if (row >= 0).any())

    assert rows(whole) == rows(b for share in shares for b in share)
    sizes = [validation_bytes(corpus, seq_len=128, limit_tokens=limit, part=(i, parts)) for i in range(parts)]
    assert sum(sizes) == validation_bytes(corpus, seq_len=128, limit_tokens=limit)
