"""Training on images among text: which rows come when, what is learned, and what is refused."""

import io
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from drawings import shape
from PIL import Image
from run_configs import run_config

from tenfold.data.images.corpus import ImagesAmongText, build_images, image_batches
from tenfold.data.images.tiles import tiles_of
from tenfold.data.text.batches import train_batch
from tenfold.model.io.huggingface import read_model
from tenfold.serve.commands import SampleOptions, sample
from tenfold.spec.errors import TenfoldError
from tenfold.spec.vision import IMAGE_TOKENS, PATCH, VisionSpec
from tenfold.train.metrics import read_metrics
from tenfold.train.resolve import resolve_model
from tenfold.train.run_file import config_from_fields, write_config
from tenfold.train.tasks.pretrain import pretrain

VISION = {"image_size": 16, "patch_size": 4, "dim": 32, "n_layers": 1, "n_heads": 2}
CONFIG = {"model": {"width": 32, "family": "llama4"}, "seq_len": 48, "batch_size": 8, "evaluate_tokens": 2048, "vision": VISION}


@pytest.fixture(scope="module")
def images(drawings, corpus, tmp_path_factory):
    spec, _ = resolve_model(run_config(tokens=480, images=str(drawings), **CONFIG), corpus.vocab_size)
    return build_images(drawings, tmp_path_factory.mktemp("home") / "images", corpus, spec.vision)


def test_a_row_holds_whole_documents_and_learns_their_words_alone(images, drawings, corpus):
    tokenizer = images.directory / "tokenizer.json"
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer))
    assert [tokenizer.token_to_id(t) for t in IMAGE_TOKENS] == list(range(corpus.vocab_size, corpus.vocab_size + 6))
    patch = tokenizer.token_to_id(PATCH)
    seen = []
    for split in ("train", "validation"):
        for batch in image_batches(images, batch_size=7, seq_len=48, split=split):
            assert (batch.tokens == patch).sum() == 4 * len(batch.tiles) and batch.tile_ends[-1] == len(batch.tiles)
            tile = 0
            for row in range(len(batch.tokens)):
                for document in np.unique(batch.document[row]):
                    own = batch.document[row] == document
                    learned = batch.targets[row][own & (batch.targets[row] >= 0)]
                    if (batch.tokens[row][own] == patch).sum() == 0:
                        assert not len(learned)  # what fills the row
                        continue
                    assert learned[-1] == tokenizer.token_to_id("<|end_of_text|>")
                    seen.append((batch.tiles[tile].tobytes(), tokenizer.decode(learned.tolist())))
                    tile += 1
    files = sorted(drawings.glob("*.png"))
    given = [
        (np.uint8(np.rint((tiles_of(Image.open(f), 16, 1)[0] + 1) * 127.5)).tobytes(), f.with_suffix(".txt").read_text())
        for f in files
    ]
    assert sorted(seen) == sorted(given)


def test_rows_with_images_come_in_their_share_and_each_once_an_epoch(images, corpus):
    rows = {"batch_size": 4, "seq_len": 48, "seed": 3}
    count = len(images.packed("train", 48))
    shown, texts = [], []
    for step in range(count):
        batch, again = (ImagesAmongText(corpus, images, 0.25).batch(step, **rows) for _ in range(2))
        assert np.array_equal(batch.tokens, again.tokens) and np.array_equal(batch.tiles, again.tiles)
        counts = np.diff(batch.tile_ends, prepend=0)
        assert (counts > 0).sum() == 1
        assert [(row >= corpus.vocab_size).sum() > 0 for row in batch.tokens] == (counts > 0).tolist()
        shown.append(batch.tokens[counts > 0][0].tobytes() + batch.tiles.tobytes())
        texts += list(batch.tokens[counts == 0])
    assert len(set(shown)) == count
    plain = np.concatenate([train_batch(corpus, step, **rows).tokens for step in range(count)])
    assert np.array_equal(np.array(texts), plain[: len(texts)])
    assert ImagesAmongText(corpus, images, 0.01).batch(0, **rows).tiles is None


@pytest.mark.slow
def test_a_run_learns_to_see(drawings, corpus, tmp_path, capsys):
    config = {"tokens": 100_000, "images": str(drawings), "image_share": 1.0, **CONFIG}
    found = []
    for seed in range(4):  # one run's few held-out images cost anything between 0.002 and 0.21
        pretrain(run_config(**config, seed=seed), corpus, tmp_path / f"run-{seed}", quiet=True)
        found += [e for e in read_metrics(tmp_path / f"run-{seed}" / "run.jsonl") if e["event"] == "end"]
    names = ("image_bits_per_byte", "image_bits_per_byte_shuffled")
    seen, shuffled = (np.mean([e["scores"][name] for e in found]) for name in names)
    # Two words of eight and two: seen, they cost almost nothing; with another's image they are wrong.
    assert seen < 0.15 < shuffled
    model = read_model(tmp_path / "run-0" / "model")
    assert model.spec.vision.image_size == 16 and model.spec.vocab_size == corpus.vocab_size + 6
    best = int(np.argmin([e["scores"]["image_bits_per_byte"] for e in found]))  # in so short a run few learn the form too
    right = 0
    for n, (form, colour) in enumerate(product(("square", "circle"), ("red", "blue"))):
        for seed in (900 + n, 990 + n):
            shape(form, colour, seed).save(tmp_path / "new.png")
            sample(tmp_path / f"run-{best}", image=tmp_path / "new.png", options=SampleOptions(temperature=0.0))
            right += capsys.readouterr().out.strip() == f"a {colour} {form}"
    assert right >= 6  # of 8 new drawings; by guessing, 1 in 4 or fewer


def test_micro_batches_do_not_change_a_run_with_images(drawings, corpus, tmp_path):
    config, losses = {"tokens": 4_000, "images": str(drawings), "image_share": 0.5, **CONFIG}, []
    for micro in (0, 3):
        short = run_config(**config, micro_batch=micro)
        losses.append(pretrain(short, corpus, tmp_path / f"micro-{micro}", quiet=True).loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_what_cannot_be_trained_on_is_one_sentence(drawings, corpus, tmp_path):
    for changes, sentence in (
        ({"model": {"width": 32}}, "vision need family = 'llama4'"),
        ({"seq_len": 8}, "are 1. tokens, and a row has 8"),
        ({"vision": {"sise": 3}}, r"\[model.vision\] has no setting 'sise'"),
        ({"vision": VISION | {"image_size": 18}}, "must be a multiple of patch_size x shuffle = 8"),
        ({"images": str(tmp_path / "none")}, "There are no images at .*none"),
    ):
        config = run_config(**({"tokens": 2000, "images": str(drawings), **CONFIG} | changes))
        with pytest.raises(TenfoldError, match=sentence):
            pretrain(config, corpus, tmp_path / "run", quiet=True)
    pretrain(run_config(tokens=2000, model={"width": 16}, seq_len=48), corpus, tmp_path / "blind", quiet=True)
    with pytest.raises(TenfoldError, match="has no image encoder: leave --image out"):
        sample(tmp_path / "blind", image=drawings / "000.png")
    with pytest.raises(TenfoldError, match="image_share in the table .data. must be a number > 0 and <= 1, not 0.0"):
        config_from_fields({"tokens": 5, "data": {"image_share": 0.0}}, "run.toml")
    with pytest.raises(TenfoldError, match="names no images"):
        config_from_fields({"tokens": 5, "model": {"width": 16, "vision": {}}}, "run.toml")
    (tmp_path / "one").mkdir()
    shape("circle", "red", 0).save(tmp_path / "one" / "a.png")
    (tmp_path / "one" / "a.txt").write_text("a circle")
    with pytest.raises(TenfoldError, match="at least two are needed"):
        build_images(tmp_path / "one", tmp_path / "out", corpus, VisionSpec(image_size=16, patch_size=4, dim=32, n_heads=2))
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_a_truncated_image_is_named_in_the_sentence_that_ends_the_command(drawings, text_folder, tmp_path):
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(stream, "PNG")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "cut.png").write_bytes(stream.getvalue()[:-800])
    (tmp_path / "bad" / "cut.txt").write_text("noise")
    run = run_config(tokens=2000, vocab_size=300, corpus=str(text_folder), images=str(tmp_path / "bad"), **CONFIG)
    write_config(run, tmp_path / "run.toml")
    command = [Path(sys.executable).with_name("tenfold"), "train", tmp_path / "run.toml", "--home", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and f" {tmp_path}/bad/cut.png is damaged or cut short" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
