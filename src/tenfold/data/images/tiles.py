"""Images as Llama 4 takes them: cut in tiles, and written in the text as the tokens that stand for them.

The tiles follow llama-models `models/llama4/preprocess.py`: of all grids of at most `max_tiles` square tiles, the one
that shrinks the image least, or if it fits, enlarges it least; the image keeps its proportions, the rest is black,
and a view of the whole comes last where there is more than one tile.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from tenfold.spec.errors import TenfoldError

LARGEST_SIDE = 8192  # below what Pillow warns of as a bomb
_SMALLER = f"make it at most {LARGEST_SIDE} on each side."
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # others of Pillow's start programs, or have parsers that few use
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")


def open_image(source: Path | bytes, name: str = "", most_pixels: int = LARGEST_SIDE**2) -> Image.Image:
    """An image in RGB, on white where it is transparent.

    Raises TenfoldError where it cannot be read, is cut short, or has a side longer than `LARGEST_SIDE` or more than `most_pixels`.
    """
    name = name or (str(source) if isinstance(source, Path) else "The image")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as stored:
            if max(stored.size) > LARGEST_SIDE:
                raise TenfoldError(f"{name} is {stored.width} x {stored.height} pixels: {_SMALLER}")
            if stored.width * stored.height > most_pixels:
                raise TenfoldError(f"{name} has {stored.width * stored.height} pixels, and at most {most_pixels} are taken.")
            image = stored.convert("RGBA")
    except FileNotFoundError:
        raise TenfoldError(f"There is no image {name}.") from None
    except Image.DecompressionBombError:
        raise TenfoldError(f"{name} has too many pixels: {_SMALLER}") from None
    except UnidentifiedImageError:
        raise TenfoldError(f"{name} is no image that can be read: give PNG, JPEG, WebP, GIF or BMP.") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise TenfoldError(f"{name} is damaged or cut short: {error}.") from None
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def grid_for(height: int, width: int, size: int, max_tiles: int = 16) -> tuple[int, int]:
    """Rows and columns of tiles of `size` pixels for an image of height x width."""
    grids = [(n // c, c) for n in range(max_tiles, 0, -1) for c in range(n, 0, -1) if n % c == 0]

    def scale(grid: tuple[int, int]) -> float:
        return min(grid[0] * size / height, grid[1] * size / width)

    enough = [scale(g) for g in grids if scale(g) >= 1]
    wanted = min(enough) if enough else max(map(scale, grids))
    return min((g for g in grids if scale(g) == wanted), key=lambda g: g[0] * g[1])


def tiles_of(image: Image.Image, size: int, max_tiles: int = 16) -> tuple[np.ndarray, int, int]:
    """Tiles float32 [tiles, 3, size, size] between -1 and 1, row by row and then the whole, with rows and columns."""
    tiles, rows, columns = cut(image, size, max_tiles)
    return normalised(tiles), rows, columns


def normalised(tiles: np.ndarray) -> np.ndarray:
    """uint8 pixels as float32 between -1 and 1."""
    return tiles.astype(np.float32) / 127.5 - 1


def cut(image: Image.Image, size: int, max_tiles: int = 16) -> tuple[np.ndarray, int, int]:
    """What `tiles_of` gives, as uint8."""
    rows, columns = grid_for(image.height, image.width, size, max_tiles)
    height, width = rows * size, columns * size
    # An image smaller than its grid is not enlarged beyond one tile's size.
    target_h, target_w = min(max(image.height, size), height), min(max(image.width, size), width)
    by_width, by_height = target_w / image.width, target_h / image.height
    if by_width < by_height:
        shape = target_w, max(1, min(int(image.height * by_width), target_h))
    else:
        shape = max(1, min(int(image.width * by_height), target_w)), target_h
    canvas = Image.new("RGB", (width, height))
    canvas.paste(image.resize(shape, Image.Resampling.BILINEAR))
    tiles = _pixels(canvas).reshape(3, rows, size, columns, size).transpose(1, 3, 0, 2, 4).reshape(-1, 3, size, size)
    if len(tiles) > 1:
        whole = _pixels(image.resize((size, size), Image.Resampling.BILINEAR))
        tiles = np.concatenate((tiles, whole[None]))
    return np.ascontiguousarray(tiles), rows, columns


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)


def image_text(rows: int, columns: int, tokens_per_tile: int) -> str:
    """What stands for an image of rows x columns tiles in the text (llama-models `chat_format.py`, `_encode_image`)."""
    tile = "<|patch|>" * tokens_per_tile
    grid = ("<|tile_x_separator|>".join([tile] * columns) + "<|tile_y_separator|>") * rows if rows * columns > 1 else ""
    return f"<|image_start|>{grid}<|image|>{tile}<|image_end|>"


def read_images(source: Path) -> Iterator[tuple[Image.Image, str]]:
    """Images and their words from a folder (`x.png` beside `x.txt`), a Parquet file or jsonl.

    Parquet has columns `image` (bytes, or a struct with `bytes`) and `text`; a line of jsonl has `image`, a path from
    the file's folder, and `text`. Raises TenfoldError, naming the image, where one has no words.
    """
    if source.suffix == ".parquet" and source.is_file():
        yield from _read_parquet(source)
        return
    for path, words in _named_images(source):
        text = words.read_text() if isinstance(words, Path) and words.exists() else words
        yield open_image(path), _words(text if isinstance(text, str) else "", str(path))


def image_files(source: Path) -> Iterator[Path]:
    """The files that `read_images` reads, in a fixed order."""
    if source.is_file():
        yield source
    if source.suffix != ".parquet":
        for path, words in _named_images(source):
            yield path
            if isinstance(words, Path) and words.exists():
                yield words


def _named_images(source: Path) -> Iterator[tuple[Path, Any]]:
    """The image files that a folder or a jsonl file names, each with the file of its words, or what should be its words."""
    if not source.exists():
        raise TenfoldError(f"There are no images at {source}: give a folder, a .parquet or a .jsonl file.")
    if source.is_dir():
        yield from ((path, path.with_suffix(".txt")) for path in sorted(source.rglob("*")) if path.suffix.lower() in SUFFIXES)
    elif source.suffix == ".jsonl":
        for number, line in enumerate(filter(str.strip, source.read_text().splitlines()), 1):
            try:
                row = json.loads(line)
                yield source.parent / row["image"], row.get("text")
            except (ValueError, KeyError, TypeError):
                raise TenfoldError(f"Line {number} of {source} is no JSON object with an image and a text.") from None
    else:
        raise TenfoldError(f"{source} holds no images that can be read: give a folder, a .parquet or a .jsonl file.")


def _read_parquet(source: Path) -> Iterator[tuple[Image.Image, str]]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(source)
    for column in ("image", "text"):
        if column not in file.schema_arrow.names:
            raise TenfoldError(f"{source} has no column {column!r}: images need the columns image and text.")
    number = 0
    for batch in file.iter_batches(batch_size=64, columns=["image", "text"]):
        for row in batch.to_pylist():
            number += 1
            name = f"Image {number} of {source}"
            image = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
            if not image:
                raise TenfoldError(f"{name} is empty.")
            yield open_image(image, name), _words(row["text"], name)


def _words(text: str | None, name: str) -> str:
    if not text or not text.strip():
        raise TenfoldError(f"{name} has no words: give it a text, or leave it out.")
    return text.strip()
