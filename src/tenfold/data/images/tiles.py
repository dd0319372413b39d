"""Images in the form that Llama 4 takes: cut into tiles, with special tokens in the text that stand for them.

The tiles follow llama-models `models/llama4/preprocess.py`: of all grids of at most `max_tiles` square tiles, the one that shrinks
the image least, or, if the image fits, enlarges it least. The image keeps its proportions and the rest is black. If there is more
than one tile, the whole image, scaled to one tile, comes last.
"""

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tenfold.spec.errors import TenfoldError

LARGEST_SIDE = 8192  # pixels; below the size at which Pillow warns of a decompression bomb
_SMALLER = f"make it at most {LARGEST_SIDE} on each side."
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # some of Pillow's other readers start programs, or are little tested
_DEEP = ("I;16", "I;16B", "I;16L")  # 16 bits of grey
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", *_DEEP)
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")


def open_image(source: Path | bytes, name: str = "", most_pixels: int = LARGEST_SIDE**2) -> Image.Image:
    """Read an image as RGB with 8 bits per channel, turned as its EXIF says, and on white where it is transparent.

    Raises TenfoldError, in which the image is called `name`, if it cannot be read, is cut short, has a side longer than
    `LARGEST_SIDE`, or has more than `most_pixels`.
    """
    name = name or (str(source) if isinstance(source, Path) else "The image")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as stored:
            if max(stored.size) > LARGEST_SIDE:
                raise TenfoldError(f"{name} is {stored.width} x {stored.height} pixels: {_SMALLER}")
            if stored.width * stored.height > most_pixels:
                raise TenfoldError(f"{name} has {stored.width * stored.height} pixels, more than {most_pixels}: make it smaller.")
            if stored.mode not in _MODES:
                raise TenfoldError(f"{name} has pixels of mode {stored.mode}, which cannot be read: save it in RGB.")
            image = _with_alpha(ImageOps.exif_transpose(stored))
    except FileNotFoundError:
        raise TenfoldError(f"There is no image {name}.") from None
    except Image.DecompressionBombError:
        raise TenfoldError(f"{name} has too many pixels: {_SMALLER}") from None
    except UnidentifiedImageError:
        raise TenfoldError(f"{name} is no image that can be read: give PNG, JPEG, WebP, GIF or BMP.") from None
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise TenfoldError(f"{name} is damaged or cut short: {error}.") from None
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _with_alpha(image: Image.Image) -> Image.Image:
    """The image in RGBA. 16 bits of grey are scaled here, since Pillow would clip them at 255."""
    if image.mode in _DEEP:
        clear = np.asarray(image) == image.info.get("transparency", -1)
        grey = Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGBA")
        grey.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
        return grey
    return image.convert("RGBA")


def grid_for(height: int, width: int, size: int, max_tiles: int = 16) -> tuple[int, int]:
    """The rows and columns of tiles of `size` x `size` pixels for an image of height x width."""
    grids = [(n // c, c) for n in range(max_tiles, 0, -1) for c in range(n, 0, -1) if n % c == 0]

    def scale(grid: tuple[int, int]) -> float:
        return min(grid[0] * size / height, grid[1] * size / width)

    enough = [scale(g) for g in grids if scale(g) >= 1]
    wanted = min(enough) if enough else max(map(scale, grids))
    return min((g for g in grids if scale(g) == wanted), key=lambda g: g[0] * g[1])


def tiles_of(image: Image.Image, size: int, max_tiles: int = 16) -> tuple[np.ndarray, int, int]:
    """The tiles of an image, float32 [tiles, 3, size, size] in -1 to 1, row by row and then the whole image; rows; columns."""
    tiles, rows, columns = cut(image, size, max_tiles)
    return normalised(tiles), rows, columns


def normalised(tiles: np.ndarray) -> np.ndarray:
    """uint8 pixels as float32 between -1 and 1."""
    return tiles.astype(np.float32) / 127.5 - 1


def cut(image: Image.Image, size: int, max_tiles: int = 16) -> tuple[np.ndarray, int, int]:
    """Like `tiles_of`, but as uint8."""
    rows, columns = grid_for(image.height, image.width, size, max_tiles)
    height, width = rows * size, columns * size
    # Each side is enlarged to the size of one tile at most.
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
    """The text whose tokens stand for an image of rows x columns tiles (llama-models `chat_format.py`, `_encode_image`)."""
    tile = "<|patch|>" * tokens_per_tile
    grid = ("<|tile_x_separator|>".join([tile] * columns) + "<|tile_y_separator|>") * rows if rows * columns > 1 else ""
    return f"<|image_start|>{grid}<|image|>{tile}<|image_end|>"


class Picture(NamedTuple):
    """An image and its words; or, with the image None, the problem that makes it unusable."""

    image: Image.Image | None
    words: str
    problem: str = ""


def read_images(source: Path) -> Iterator[Picture]:
    """The images and their words in a folder (`x.png` beside `x.txt`), a Parquet file or a jsonl file.

    Parquet has the columns `image` (bytes, or a struct with `bytes`) and `text`; a line of jsonl has `image`, a path relative to
    the file's folder, and `text`. Raises TenfoldError if the source is none of these.
    """
    if source.suffix == ".parquet" and source.is_file():
        yield from _read_parquet(source)
        return
    for path, words in _named_images(source):
        yield _picture(path, words, str(path)) if isinstance(path, Path) else Picture(None, "", path)


def _picture(image: Path | bytes, words: Any, name: str) -> Picture:
    try:
        text = words.read_text(encoding="utf-8-sig") if isinstance(words, Path) and words.exists() else words
        return Picture(open_image(image, name), _words(text if isinstance(text, str) else "", name))
    except UnicodeDecodeError:
        return Picture(None, "", f"The words of {name} are not UTF-8.")
    except TenfoldError as error:
        return Picture(None, "", str(error))


def image_files(source: Path) -> Iterator[Path]:
    """The files that `read_images` reads, in a fixed order. Raises TenfoldError as that does."""
    if source.is_file():
        yield source
    if source.suffix != ".parquet":
        for path, words in _named_images(source):
            if isinstance(path, Path):
                yield path
            if isinstance(words, Path) and words.exists():
                yield words


def _named_images(source: Path) -> Iterator[tuple[Path | str, Any]]:
    """The image files in a folder or a jsonl file, each with the path of its words (folder) or with its words (jsonl).

    For an invalid line of jsonl, a sentence that says so takes the place of the path.
    """
    if not source.exists():
        raise TenfoldError(f"There are no images at {source}: give a folder, a .parquet or a .jsonl file.")
    if source.is_dir():
        yield from ((path, path.with_suffix(".txt")) for path in sorted(source.rglob("*")) if path.suffix.lower() in SUFFIXES)
    elif source.suffix == ".jsonl":
        for number, line in enumerate(filter(str.strip, source.read_text(encoding="utf-8-sig").splitlines()), 1):
            try:
                row = json.loads(line)
                yield source.parent / row["image"], row.get("text")
            except (ValueError, KeyError, TypeError):
                yield f"Line {number} of {source} is no JSON object with an image and a text.", None
    else:
        raise TenfoldError(f"{source} holds no images that can be read: give a folder, a .parquet or a .jsonl file.")


def _read_parquet(source: Path) -> Iterator[Picture]:
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
            yield _picture(image, row["text"], name) if isinstance(image, bytes) else Picture(None, "", f"{name} is empty.")


def _words(text: str, name: str) -> str:
    if not text.strip():
        raise TenfoldError(f"{name} has no words: give it a text, or leave it out.")
    return text.strip()
