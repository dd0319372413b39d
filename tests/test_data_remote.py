"""Corpora in object stores: the same batches as from local disk, through a real S3 server and its failures."""

import logging
import os
import pickle
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import boto3
import fsspec
import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from run_configs import run_config

from tenfold.data.text import remote
from tenfold.data.text.batches import row_count, train_batch, validation_batches
from tenfold.data.text.corpus import build
from tenfold.data.text.prefetch import Prefetch
from tenfold.data.text.remote import MirroredShards, open_remote, upload
from tenfold.spec.errors import TenfoldError
from tenfold.train.tasks.pretrain import pretrain
from tenfold.train.text import open_text


@pytest.fixture(scope="module")
def small(tmp_path_factory, text_folder):
    """Many small shards, so that rows and blocks cross their borders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tenfold.data.text.corpus.SHARD_TOKENS", 30_011)
        return build(text_folder, tmp_path_factory.mktemp("small") / "corpus", vocab_size=300, quiet=True)


@pytest.fixture(scope="module")
def s3(small):
    server = ThreadedMotoServer(port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "tenfold", "AWS_SECRET_ACCESS_KEY": "tenfold"}
    settings |= {"AWS_DEFAULT_REGION": "us-east-1"}
    before = dict(os.environ)
    os.environ.update(settings)
    boto3.client("s3").create_bucket(Bucket="texts")
    upload(small.directory, "s3://texts/corpora/small")
    yield settings["AWS_ENDPOINT_URL"]
    os.environ.clear()
    os.environ.update(before)
    server.stop()


def batches(corpus, steps=range(0, 40, 3)):
    train = [train_batch(corpus, step, batch_size=5, seq_len=301, seed=7) for step in steps]
    return [b.tokens for b in [*train, *validation_batches(corpus, batch_size=9, seq_len=301)]]


@pytest.mark.parametrize("cache_bytes", [2**30, 0, 300_000])
def test_a_bucket_gives_the_batches_of_the_local_corpus(small, s3, tmp_path, monkeypatch, cache_bytes):
    monkeypatch.setattr(remote, "BLOCK_BYTES", 4096)
    corpus = open_remote("s3://texts/corpora/small", tmp_path, cache_bytes)
    for expected, found in zip(batches(small), batches(corpus), strict=True):
        assert np.array_equal(expected, found)
    # With room for both splits both are mirrored, with little only validation, with none neither.
    mirrored = [isinstance(corpus.tokens(split), MirroredShards) for split in ("train", "validation")]
    assert mirrored == {2**30: [True, True], 0: [False, False], 300_000: [False, True]}[cache_bytes]
    occupied = sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("*.bin"))
    assert occupied <= cache_bytes + 4096 * 40
    assert corpus.text("validation", 1) == small.text("validation", 1)
    assert corpus.tokenizer.to_str() == small.tokenizer.to_str()


@pytest.mark.parametrize("cache_bytes", [2**30, 0])
@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_other_stores_give_them_too(small, tmp_path, protocol, cache_bytes):
    url = f"{protocol}://{tmp_path}/store/{uuid.uuid4().hex}"
    upload(small.directory, url)
    corpus = open_remote(url, tmp_path / "cache", cache_bytes)
    assert all(map(np.array_equal, batches(small), batches(corpus)))


def test_what_was_mirrored_is_not_read_again(small, tmp_path):
    url = f"memory://{tmp_path.name}/{uuid.uuid4().hex}"
    upload(small.directory, url)
    before = batches(open_remote(url, tmp_path))
    memory = fsspec.filesystem("memory")
    for path in memory.find(url):
        if "train-0" in path or "validation-0" in path:
            memory.pipe_file(path, b"")
    assert all(map(np.array_equal, before, batches(open_remote(url, tmp_path))))
    with pytest.raises(TenfoldError, match="shorter than the manifest says"):
        batches(open_remote(url, tmp_path / "elsewhere"))


def test_many_threads_share_a_mirror(small, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK_BYTES", 64)
    url = f"memory://{tmp_path.name}/{uuid.uuid4().hex}"
    upload(small.directory, url)
    shards, positions = open_remote(url, tmp_path).tokens("train"), np.arange(20_000)
    assert isinstance(shards, MirroredShards)
    with ThreadPoolExecutor(16) as pool:
        for seen in pool.map(lambda _: shards[positions], range(16)):
            assert np.array_equal(seen, small.tokens("train")[positions])


def test_a_corpus_goes_to_another_process_by_its_address(small, s3, tmp_path):
    corpus = open_remote("s3://texts/corpora/small", tmp_path)
    corpus.tokens("train")
    copy = pickle.loads(pickle.dumps(corpus))
    assert len(pickle.dumps(corpus)) < 1000 and copy.directory == corpus.directory
    assert np.array_equal(copy.tokens("train")[:5000], small.tokens("train")[:5000])


@pytest.mark.parametrize("cache_gib", [1.0, 0.0])
def test_a_run_from_a_bucket_has_the_loss_of_one_from_disk(small, s3, tmp_path, cache_gib):
    fields = {"tokens": 64 * 12, "model": {"width": 32}, "seq_len": 16, "batch_size": 4, "device": "cpu", "evaluate_tokens": 1000}
    results = []
    for name, source in (
        ("bucket", {"corpus": "s3://texts/corpora/small", "cache_gib": cache_gib}),
        ("disk", {"corpus": str(small.directory)}),
    ):
        config = run_config(**fields, **source)
        results.append(pretrain(config, open_text(config, tmp_path, quiet=True), tmp_path / name, quiet=True, keep_model=False))
    assert results[0].loss == results[1].loss and results[0].step == 12


def test_prefetched_batches_are_those_of_their_steps_whatever_the_order(small):
    def make(step):
        time.sleep(0.001 * (step % 3))  # later steps may be ready first
        return train_batch(small, step, batch_size=2, seq_len=64, seed=1)

    with Prefetch(make, 60, ahead=8) as prefetch:
        for step in [*range(20), *range(5, 30), 50, 59]:
            assert np.array_equal(prefetch(step).tokens, train_batch(small, step, batch_size=2, seq_len=64, seed=1).tokens)


def test_prefetch_goes_neither_past_the_end_nor_far_ahead():
    asked, running, most = [], 0, 0
    lock = threading.Lock()

    def make(step):
        nonlocal running, most
        with lock:
            asked.append(step)
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return step

    with Prefetch(make, 10, ahead=4, threads=3) as prefetch:
        assert prefetch(0) == 0 and max(asked) <= 4
        assert [prefetch(step) for step in range(1, 10)] == list(range(1, 10))
    assert sorted(asked) == list(range(10)) and 1 < most <= 3


def test_an_error_is_raised_at_its_step():
    def make(step):
        if step == 3:
            raise TenfoldError("The store is gone.")
        return step

    with Prefetch(make, 10) as prefetch:
        assert [prefetch(step) for step in range(3)] == [0, 1, 2]
        with pytest.raises(TenfoldError, match="gone"):
            prefetch(3)


def test_what_a_store_refuses_is_one_sentence(small, s3, tmp_path, monkeypatch):
    with pytest.raises(TenfoldError, match="s3://nothing/here holds no corpus"):
        open_remote("s3://nothing/here", tmp_path)
    with pytest.raises(TenfoldError, match=r"s3://nothing/here cannot be read or written: there is no such bucket"):
        upload(small.directory, "s3://nothing/here")
    with pytest.raises(TenfoldError, match="'s4' is no protocol"):
        open_remote("s4://nothing/here", tmp_path)
    fs = fsspec.filesystem("s3")
    fs.copy("texts/corpora/small", "texts/corpora/damaged", recursive=True)
    fs.pipe_file("texts/corpora/damaged/tokenizer.json", b"{}")
    with pytest.raises(TenfoldError, match="tokenizer.json is damaged"):
        open_remote("s3://texts/corpora/damaged", tmp_path)
    assert row_count(open_remote("s3://texts/corpora/small", tmp_path), "train", 64) == row_count(small, "train", 64)


def test_no_credentials_and_no_server_are_one_sentence(tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(TenfoldError, match="no credentials"):
        open_remote("s3://texts/corpora/small", tmp_path)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tenfold")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tenfold")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(TenfoldError, match="does not answer"):
        open_remote("s3://texts/corpora/small", tmp_path)
    fsspec.filesystem("s3").clear_instance_cache()
