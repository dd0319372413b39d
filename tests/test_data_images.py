"""Tiles, their tokens, and images that cannot be used."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tenfold.data.images.tiles import grid_for, image_text, open_image, read_images, tiles_of
from tenfold.spec.errors import TenfoldError


def drawing(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.linspace(40, 255, width), np.linspace(40, 255, height))
    return Image.fromarray(np.stack((x, y, (x + y) / 2), -1).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    # By hand from the rule: the least enlargement that fits, else the least shrinking, then the smallest area.
    [
        (336, 336, (1, 1)),
        (100, 50, (1, 1)),
        (336, 672, (1, 2)),
        (400, 300, (2, 1)),
        (337, 337, (2, 2)),
        (5000, 5000, (4, 4)),
        (336, 9000, (1, 16)),
    ],
)
def test_grids_of_known_images(height, width, grid):
    assert grid_for(height, width, 336) == grid


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 4, 16]))
def test_tiles_hold_the_whole_image_in_proportion(width, height, most):
    tiles, rows, columns = tiles_of(drawing(width, height), 32, most)
    assert rows * columns <= most and len(tiles) == (rows * columns + 1 if rows * columns > 1 else 1)
    assert tiles.shape[1:] == (3, 32, 32) and tiles.dtype == np.float32 and abs(tiles).max() <= 1
    canvas = tiles[: rows * columns].reshape(rows, columns, 3, 32, 32).transpose(2, 0, 3, 1, 4).reshape(3, rows * 32, columns * 32)
    drawn = (canvas > -1).any(0)
    h, w = np.flatnonzero(drawn.any(1)).max() + 1, np.flatnonzero(drawn.any(0)).max() + 1
    assert h / height == pytest.approx(w / width, abs=1.01 * max(1 / height, 1 / width) + 1 / min(height, width))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 3), (2, 2), (4, 1)])
def test_the_tokens_of_a_image_are_those_of_transformers(rows, columns):
    from transformers.models.llama4.processing_llama4 import Llama4Processor

    names = SimpleNamespace(
        image_token="<|image|>", img_patch_token="<|patch|>", tile_token="<|tile_x_separator|>", tile_global_token="<|tile_y_separator|>",
        start_of_img_token="<|image_start|>", end_of_img_token="<|image_end|>",
    )  # fmt: skip
    theirs = Llama4Processor._prompt_split_image(names, np.array([rows, columns]), 9)
    assert image_text(rows, columns, 9) == theirs


def test_folders_parquet_and_jsonl_give_the_same_images(tmp_path):
    words = {"a": "a red square", "b": "a cat"}
    for i, (name, text) in enumerate(words.items()):
        (tmp_path / f"{name}.png").write_bytes(png(drawing(20 + i, 30)))
        (tmp_path / f"{name}.txt").write_text(text + "\n")
    lines = [json.dumps({"image": f"{n}.png", "text": t}) for n, t in words.items()]
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    images = [(tmp_path / f"{n}.png").read_bytes() for n in words]
    pq.write_table(pa.table({"image": images, "text": list(words.values())}), tmp_path / "all.parquet")
    found = [[(p.size, t) for p, t in read_images(s)] for s in (tmp_path, tmp_path / "all.jsonl", tmp_path / "all.parquet")]
    assert found[0] == found[1] == found[2] == [((20, 30), "a red square"), ((21, 30), "a cat")]


def test_what_is_transparent_is_white():
    assert open_image(png(Image.new("RGBA", (4, 4), (9, 9, 9, 0)))).getpixel((0, 0)) == (255, 255, 255)


def test_bad_images_are_one_sentence(tmp_path):
    whole = png(drawing(64, 64))
    for content, sentence in (
        (whole[:-200], "cut.png is damaged or cut short"),
        (b"no image at all", "cut.png is no image that can be read"),
        (png(Image.new("1", (20_000, 2))), "cut.png is 20000 x 2 pixels: make it at most 8192"),
        (png(Image.new("1", (20_000, 20_000))), "cut.png has too many pixels: make it at most 8192"),
    ):
        (tmp_path / "cut.png").write_bytes(content)
        with pytest.raises(TenfoldError, match=sentence):
            open_image(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes(whole)
    with pytest.raises(TenfoldError, match="cut.png has no words"):
        list(read_images(tmp_path))
    with pytest.raises(TenfoldError, match="There is no image"):
        open_image(tmp_path / "none.png")
    (tmp_path / "x.jsonl").write_text('{"image": 1}')
    with pytest.raises(TenfoldError, match="Line 1 of .* is no JSON object with an image and a text"):
        list(read_images(tmp_path / "x.jsonl"))
    pq.write_table(pa.table({"image": [whole]}), tmp_path / "x.parquet")
    with pytest.raises(TenfoldError, match="has no column 'text'"):
        list(read_images(tmp_path / "x.parquet"))
    (tmp_path / "x.csv").write_text("image,text")
    with pytest.raises(TenfoldError, match="holds no images"):
        list(read_images(tmp_path / "x.csv"))
