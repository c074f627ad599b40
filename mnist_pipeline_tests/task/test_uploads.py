"""Pictures of digits in every format and mode, as people send them to the service."""

import numpy as np
import pytest
from PIL import Image

from mnist_pipeline.serve.settings import FORMATS
from mnist_pipeline_tests.serve.test_predict import error
from mnist_pipeline_tests.task.drawing import drawn, encode


@pytest.mark.parametrize("form", FORMATS)
def test_all_formats(service, form):
    [prediction] = service.predict(encode(drawn(mode="RGB", paper="white", ink="black"), form)).json()["predictions"]
    assert prediction["label"] == 7


@pytest.mark.parametrize(
    "picture",
    [
        drawn().convert("P"),
        drawn(paper=(0, 0, 0, 0), ink=(0, 0, 0, 255), mode="RGBA"),
        Image.fromarray(np.asarray(drawn()).astype(np.uint16) * 257),
        drawn(paper=1, ink=0, mode="1"),
    ],
    ids=["palette", "transparent", "16 bits", "1 bit"],
)
def test_all_modes(service, picture):
    assert service.predict(encode(picture)).json()["predictions"][0]["label"] == 7


def test_a_cmyk_jpeg(service):
    picture = drawn(paper=(0, 0, 0, 0), ink=(0, 0, 0, 255), mode="CMYK")
    assert service.predict(encode(picture, "JPEG")).json()["predictions"][0]["label"] == 7


def test_damaged_exif_data_is_refused(service):
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encode(drawn(mode="RGB", paper="white", ink="black"), "JPEG", exif=exif)
    assert service.predict(whole).status_code == 200
    at, statuses = whole.index(b"Exif"), set()
    for position in range(at, at + 40):
        for value in (0, 1, 255):
            broken = bytearray(whole)
            broken[position] = value
            statuses.add(service.predict(bytes(broken)).status_code)
    assert statuses <= {200, 422}


@pytest.mark.parametrize(
    ("picture", "message"),
    [(Image.new("L", (50, 50), 255), "blank"), (Image.new("RGBA", (50, 50)), "fully transparent")],
)
def test_a_picture_that_shows_nothing_is_refused_with_a_sentence(service, picture, message):
    status, code, said = error(service.predict(encode(picture)))
    assert (status, code) == (422, "bad_image")
    assert message in said
