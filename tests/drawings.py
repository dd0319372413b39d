"""Small drawings with words that say what they show."""

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 70, 220), "black": (10, 10, 10)}


def shape(name: str, colour: str, seed: int) -> Image.Image:
    draw = np.random.default_rng(seed)
    image = Image.new("RGB", (16, 16), "white")
    x, y, r = draw.integers(3, 7), draw.integers(3, 7), draw.integers(5, 8)
    pen = ImageDraw.Draw(image)
    (pen.ellipse if name == "circle" else pen.rectangle)((x, y, x + r, y + r), fill=COLOURS[colour])
    return image


def draw_all(folder) -> None:
    for i in range(160):
        name, colour = ("circle", "square")[i % 2], list(COLOURS)[i // 2 % 4]
        shape(name, colour, i).save(folder / f"{i:03}.png")
        (folder / f"{i:03}.txt").write_text(f"a {colour} {name}")
