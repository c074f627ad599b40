"""Any picture of a digit becomes what MNIST would have made of it."""

import random

import numpy as np
import pytest
from PIL import Image

from mnist_pipeline.files import pictures
from mnist_pipeline.files.pictures import ImageError
from mnist_pipeline.task import preprocessing
from mnist_pipeline.task.known.mnist import MNIST
from mnist_pipeline_tests.task.drawing import drawn, encode


def read_image(data: bytes) -> np.ndarray:
    return preprocessing.read_image(data, MNIST)


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    return read_image(encode(drawn()))


def test_it_looks_like_mnist(reference):
    assert reference.dtype == np.uint8
    assert reference.shape == (28, 28)
    rows, columns = np.nonzero(reference > 20)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)
    mass = [np.average(np.arange(28), weights=reference.sum(axis).astype(float)) for axis in (1, 0)]
    assert np.abs(np.array(mass) - 13.5).max() <= 0.51
    assert reference.max() == 255
    assert np.median(reference) == 0


@pytest.mark.parametrize(
    "picture",
    [
        drawn(paper=0, ink=255),
        drawn(paper=200, ink=60),
        drawn(shift=(50, 60)),
        drawn(paper=(250, 245, 230), ink=(20, 30, 120), mode="RGB"),
        drawn(paper=(0, 0, 0, 0), ink=(0, 0, 0, 255), mode="RGBA"),
        drawn(paper=(0, 0, 0, 0), ink=(255, 255, 255, 255), mode="RGBA"),
        drawn(paper=(255, 255), ink=(0, 255), mode="LA"),
        drawn(paper=1, ink=0, mode="1"),
        drawn().convert("P"),
        drawn(paper=(0, 0, 0, 0), ink=(0, 0, 0, 255), mode="CMYK"),
        Image.fromarray(np.asarray(drawn()).astype(np.uint16) * 257),
        drawn(size=(400, 300)),
    ],
    ids=[
        "white on black",
        "low contrast",
        "shifted",
        "colour",
        "transparent, black ink",
        "transparent, white ink",
        "grey with alpha",
        "one bit",
        "palette",
        "cmyk",
        "16 bit",
        "wide",
    ],
)
def test_the_same_drawing_in_other_forms_comes_out_the_same(picture, reference):
    form = "TIFF" if picture.mode == "CMYK" else "PNG"
    assert np.abs(read_image(encode(picture, form)).astype(int) - reference).max() <= 40


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "BMP", "GIF"])
def test_other_formats(form, reference):
    assert np.abs(read_image(encode(drawn(), form)).astype(int) - reference).mean() < 3


def test_the_camera_s_rotation_is_undone(reference):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to view
    turned = encode(drawn().rotate(90, expand=True), "JPEG", exif=exif, quality=95)
    assert np.abs(read_image(turned).astype(int) - reference).mean() < 3


def test_a_photo_with_a_shadow_loses_the_paper(reference):
    shadow = np.linspace(0, 60, 200)[None, :]
    photo = np.clip(np.asarray(drawn()) * 0.75 + 30 - shadow * 0.5, 0, 255).astype(np.uint8)
    assert np.abs(read_image(encode(Image.fromarray(photo))).astype(int) - reference).mean() < 8


def test_thin_strokes_of_a_large_drawing_do_not_vanish():
    thin = read_image(encode(drawn(size=(900, 1200), width=3).resize((1800, 2400))))
    assert (thin > 60).sum() >= 25


def test_mnist_images_pass_unchanged(small_dataset):
    for image in small_dataset.test.images:
        assert np.array_equal(read_image(encode(Image.fromarray(image))), image)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an image"),
        (b"hello", "not an image"),
        (encode(drawn())[:60], "broken image"),
        (encode(Image.new("L", (50, 50), 255)), "blank"),
        (encode(Image.new("L", (28, 28), 255)), "blank"),
        (encode(Image.new("L", (28, 28), 0)), "blank"),
        (encode(Image.new("RGBA", (50, 50), (0, 0, 0, 0))), "transparent"),
    ],
    ids=["empty", "text", "truncated", "white", "small and white", "small and black", "transparent"],
)
def test_what_shows_no_digit_is_refused(data, message):
    with pytest.raises(ImageError, match=message):
        read_image(data)


def test_too_many_pixels_are_refused_before_decoding(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
    with pytest.raises(ImageError, match="more than 100 pixels"):
        read_image(encode(drawn()))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_damaged_files_are_refused_and_nothing_else_happens(form):
    chance, whole, refused = random.Random(0), encode(drawn(size=(40, 60), shift=(-30, -30)), form), 0
    for _ in range(150):
        damaged = bytearray(whole[: chance.randrange(1, len(whole) + 1)])
        for _ in range(chance.randint(0, 6)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            assert read_image(bytes(damaged)).shape == (28, 28)
        except ImageError:
            refused += 1
    assert refused > 20
