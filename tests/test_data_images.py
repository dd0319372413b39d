"""Tiles, their tokens, and images that cannot be used."""

import io
import json
import re
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tenfold.data.images.corpus import build_images
from tenfold.data.images.tiles import grid_for, image_text, open_image, read_images, tiles_of
from tenfold.spec.errors import TenfoldError
from tenfold.spec.vision import VisionSpec


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
    found = [[(p.size, t) for p, t, _ in read_images(s)] for s in (tmp_path, tmp_path / "all.jsonl", tmp_path / "all.parquet")]
    assert found[0] == found[1] == found[2] == [((20, 30), "a red square"), ((21, 30), "a cat")]


def stored(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def palette() -> Image.Image:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return image


def deep_png(colour: int, channels: int, pixel: list[int], clear: bytes = b"") -> bytes:
    """A PNG of 4 x 4 equal pixels of 16 bits, by hand: Pillow writes grey ones alone."""
    row = b"\0" + b"".join(value.to_bytes(2, "big") for value in pixel[:channels]) * 4
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, colour, 0, 0, 0)), (b"tRNS", clear), (b"IDAT", zlib.compress(row * 4))]
    chunks = [*(part for part in parts if part[1]), (b"IEND", b"")]
    whole = b"".join(struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + whole


@pytest.mark.parametrize(
    ("data", "pixel"),
    [
        (stored(Image.new("RGBA", (4, 4), (9, 9, 9, 0))), (255, 255, 255)),
        (stored(Image.new("RGBA", (4, 4), (0, 0, 0, 51))), (204, 204, 204)),
        (stored(Image.new("LA", (4, 4), (0, 51))), (204, 204, 204)),
        (stored(palette()), (10, 20, 30)),
        (stored(palette(), transparency=1), (255, 255, 255)),
        (stored(palette(), transparency=b"\xff\x33"), (206, 208, 210)),
        (stored(palette(), "GIF", transparency=1), (255, 255, 255)),
        (stored(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3)), (255, 255, 255)),
        (stored(Image.new("1", (4, 4), 1)), (255, 255, 255)),
        (stored(Image.new("CMYK", (4, 4), (255, 0, 0, 0)), "JPEG"), (0, 255, 255)),
        (stored(Image.fromarray(np.full((4, 4), 0x8080, np.uint16))), (128, 128, 128)),
        (deep_png(0, 1, [0x4040]), (64, 64, 64)),
        (deep_png(0, 1, [0x4040], b"\x40\x40"), (255, 255, 255)),
        (deep_png(2, 3, [0x4040, 0x8080, 0xFFFF]), (64, 128, 255)),
        (deep_png(4, 2, [0x0000, 0x3333]), (204, 204, 204)),
        (deep_png(6, 4, [0x0000, 0x0000, 0xFFFF, 0x3333]), (204, 204, 255)),
    ],
)
def test_pixels_of_every_kind_are_right(data, pixel):
    assert open_image(data).getpixel((0, 0)) == pytest.approx(pixel, abs=1)


@pytest.mark.parametrize(("kind", "turn"), [("JPEG", o) for o in range(1, 9)] + [("PNG", 6), ("WEBP", 8)])
def test_images_are_turned_as_their_exif_says(kind, turn):
    """The corner that belongs at the top left is white, where each orientation stores it (EXIF 2.3, 4.6.4)."""
    corner = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[turn]
    image = Image.new("RGB", (64, 32) if turn < 5 else (32, 64))
    half = image.width // 2, image.height // 2
    image.paste("white", (corner[0] * half[0], corner[1] * half[1], (corner[0] + 1) * half[0], (corner[1] + 1) * half[1]))
    exif = Image.Exif()
    exif[0x0112] = turn
    shown = open_image(stored(image, kind, exif=exif))
    assert shown.size == (64, 32) and shown.getpixel((4, 4))[0] > 200 and shown.getpixel((60, 28))[0] < 50


@pytest.mark.parametrize("format", ["TIFF", "PPM", "EPS"])
def test_formats_that_are_not_asked_for_are_refused_though_pillow_reads_them(format):
    with pytest.raises(TenfoldError, match="give PNG, JPEG, WebP, GIF or BMP"):
        open_image(stored(Image.new("RGB", (4, 4)), format))


def test_a_damaged_image_is_left_out_and_words_are_text(corpus, tmp_path, capsys):
    folder, words = tmp_path / "in", "<|image_end|> of <|end_of_text|>"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.png").write_bytes(png(drawing(20, 20 + i)))
        (folder / f"{i}.txt").write_text(words)
    (folder / "1.png").write_bytes(png(drawing(64, 64))[:-200])
    (folder / "2.txt").write_bytes(b"n\xe9")
    vision = VisionSpec(image_size=16, patch_size=4, dim=32, n_heads=2)
    images = build_images(folder, tmp_path / "out", corpus, vision)
    assert images.manifest["images"] == 2
    cut, words_of = images.manifest["dropped"]
    assert "1.png is damaged or cut short" in cut and words_of == f"The words of {folder / '2.png'} are not UTF-8."
    assert "2 of 4 images are left out" in capsys.readouterr().err
    end, last = images.documents["tokens"][0], images.documents["words"][0]
    said = images.tokens[end - last : end].tolist()
    special = set(images.vocabulary.special.values())
    assert corpus.tokenizer.decode(said[:-1]) == words and [i for i in said if i in special] == [images.vocabulary.document_end]
    (folder / "3.png").unlink()
    with pytest.raises(TenfoldError, match="has 1 usable images: at least two are needed, .*1.png is damaged"):
        build_images(folder, tmp_path / "again", corpus, vision)


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
    assert "cut.png has no words" in next(read_images(tmp_path)).problem
    with pytest.raises(TenfoldError, match="There is no image"):
        open_image(tmp_path / "none.png")
    (tmp_path / "x.jsonl").write_text('{"image": 1}')
    assert re.match("Line 1 of .* is no JSON object with an image and a text", next(read_images(tmp_path / "x.jsonl")).problem)
    pq.write_table(pa.table({"image": [whole]}), tmp_path / "x.parquet")
    with pytest.raises(TenfoldError, match="has no column 'text'"):
        list(read_images(tmp_path / "x.parquet"))
    (tmp_path / "x.csv").write_text("image,text")
    with pytest.raises(TenfoldError, match="holds no images"):
        list(read_images(tmp_path / "x.csv"))
