"""Drawings as pictures and as strokes, and a hand that draws them on the page."""

import io
import random
from typing import Any

from PIL import Image, ImageDraw

Strokes = list[list[tuple[float, float]]]
"""Points from 0 to 1, from the left and top edge of the pad."""

SEVEN: Strokes = [[(0.3, 0.25), (0.7, 0.25), (0.45, 0.8)]]
ONE: Strokes = [[(0.5, 0.2), (0.5, 0.8)]]


def crossed_seven(chance: random.Random) -> Strokes:
    """A seven with a long, low crossbar, no two alike. A network that has seen none takes it for a two."""

    def near(value: float, spread: float = 0.03) -> float:
        return value + chance.uniform(-spread, spread)

    roof, foot = near(0.2), near(0.82)
    left, right, bottom = near(0.36), near(0.66), near(0.46)
    height = near(0.7)
    slant = chance.uniform(-0.04, 0.04)
    return [
        [(left, roof), (right, near(roof, 0.02)), (bottom, foot)],
        [(near(0.15), height + slant), (near(0.8), height - slant)],
    ]


def draw(page: Any, strokes: Strokes, lift: bool = True) -> None:
    """With the mouse; `lift` False keeps the button of the last stroke down."""
    box = page.locator("#pad").bounding_box()
    for number, stroke in enumerate(strokes):
        points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point, steps=8)
        if lift or number < len(strokes) - 1:
            page.mouse.up()


def encode(picture: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


DRAWN_CLASS = 7


def drawn(size=(200, 300), paper=255, ink=0, mode="L", shift=(0, 0), width=16) -> Image.Image:
    """A seven as a picture that somebody sends: DRAWN_CLASS, in any size, mode and colours."""
    picture = Image.new(mode, size, paper)
    points = [(x + shift[0], y + shift[1]) for x, y in [(60, 60), (130, 60), (85, 220)]]
    ImageDraw.Draw(picture).line(points, fill=ink, width=width)
    return picture
