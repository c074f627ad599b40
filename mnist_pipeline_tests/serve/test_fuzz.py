"""Whatever is sent: an answer in the documented shape, never a defect, and memory stays bounded.

FUZZ_IMAGES=10000 for the long run.
"""

import io
import random
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from mnist_pipeline.serve.settings import FORMATS
from mnist_pipeline_tests.amounts import FUZZ_IMAGES, REFUSED_ROUNDS
from mnist_pipeline_tests.serve.service import Service, process
from mnist_pipeline_tests.task.drawing import drawn, encode
from mnist_pipeline_tests.task.examples import SPEC

CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)
ALLOWED_GROWTH_MIB = 50


def mutated(whole: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, cut, repeated, or inserted."""
    data = bytearray(whole)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        at = chance.randrange(len(data)) if data else 0
        match chance.choice(("change", "change", "change", "cut", "repeat", "insert", "zero")):
            case "change" if data:
                data[at] = chance.randrange(256)
            case "cut":
                del data[at : at + chance.choice((1, 8, len(data)))]
            case "repeat":
                data[at:at] = data[at : at + chance.choice((1, 16, 200))]
            case "insert":
                data[at:at] = chance.randbytes(chance.choice((1, 4, 100)))
            case "zero":
                data[at : at + 4] = bytes(4)
    return bytes(data)


def wholes() -> list[bytes]:
    pictures = [
        drawn(),
        drawn(mode="RGB", paper="white", ink="blue"),
        drawn().convert("P"),
        drawn(size=SPEC.image_shape[:2], width=3),
    ]
    files = [
        encode(picture.convert("RGB") if form in ("WEBP", "JPEG") else picture, form)
        for form in FORMATS
        for picture in pictures
    ]
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    exif.get_ifd(0x8769)[0x829A] = 0.5
    photo = drawn(mode="RGB", paper="white", ink="blue")
    files += [
        encode(photo, "JPEG", exif=exif),
        encode(photo, "PNG", exif=exif),
        encode(photo, "WEBP", exif=exif),
        encode(photo, "MPO", save_all=True, append_images=[photo]),
        encode(drawn(paper=(0, 0, 0, 0), ink=(0, 0, 0, 255), mode="CMYK"), "JPEG"),
        encode(drawn(paper=(0, 0, 0, 0), ink=(0, 0, 0, 255), mode="RGBA")),
        encode(Image.fromarray(np.asarray(drawn()).astype(np.uint16) * 257)),
        encode(drawn(size=(3000, 2500), width=200)),
    ]
    buffer = io.BytesIO()
    Image.new("L", (30, 30)).save(buffer, "GIF", save_all=True, append_images=[Image.new("L", (30, 30), 255)])
    return [*files, buffer.getvalue()]


@pytest.mark.long
def test_mutated_images_are_answered_or_refused(store, deployed, tmp_path):
    chance, files = random.Random(0), wholes()
    statuses: dict[int, int] = {}
    before = 0.0
    with (
        process("--store", store.base_path, STORAGE_ROOT=str(tmp_path)) as (url, server, _),
        httpx.Client(base_url=url, timeout=60, headers={"Content-Type": "image/png"}) as client,
    ):
        watched = psutil.Process(server.pid)
        first = client.post("/predict", content=files[0]).json()
        for number in range(FUZZ_IMAGES):
            status = client.post("/predict", content=mutated(chance.choice(files), chance)).status_code
            statuses[status] = statuses.get(status, 0) + 1
            if number == FUZZ_IMAGES // 4:
                before = watched.memory_info().rss / 2**20
        assert set(statuses) <= {200, 400, 413, 422}
        assert statuses[200] > FUZZ_IMAGES / 50
        assert statuses[422] > FUZZ_IMAGES / 10
        assert watched.memory_info().rss / 2**20 < before + ALLOWED_GROWTH_MIB
        answer = client.post("/predict", content=files[0]).json()
    (now,), (then,) = answer["predictions"], first["predictions"]
    assert (now["label"], now["confidence"]) == (then["label"], then["confidence"])


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
def test_the_document_is_true(store, deployed, labelled, mode):
    with Service(store, labelled, corrections_per_minute=100_000) as service:
        document: BaseSchema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
        if mode == GenerationMode.NEGATIVE:  # the others take nothing that could be wrong
            document = document.include(method=["POST", "DELETE"])
        operations = [found.ok() for found in document.get_all_operations() if isinstance(found, Ok)]
        assert len(operations) == (16 if mode == GenerationMode.POSITIVE else 5)
        for operation in operations:

            @settings(max_examples=30, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case):
                case.call_and_validate(checks=list(CHECKS))

            check()


def worst() -> list[bytes]:
    """Small files that take much memory to look at, and show nothing."""
    transparent = Image.new("P", (5000, 5000))
    transparent.putpalette([0, 0, 0] * 256)
    pictures = [Image.new(mode, (5000, 5000)) for mode in ("1", "L", "LA", "RGBA")]
    pictures.append(Image.fromarray(np.zeros((5000, 5000), np.uint16)))
    return [encode(transparent, transparency=0), *(encode(picture) for picture in pictures)]


@pytest.mark.long
def test_refused_pictures_do_not_stay_in_memory(store, deployed, tmp_path):
    files = worst()
    assert max(map(len, files)) < 100_000
    with process("--store", store.base_path, STORAGE_ROOT=str(tmp_path)) as (url, server, _):
        watched = psutil.Process(server.pid)

        def refuse(file: bytes) -> float:
            answer = httpx.post(f"{url}/predict", content=file, headers={"Content-Type": "image/png"}, timeout=60)
            assert answer.status_code == 422
            return watched.memory_info().rss / 2**20

        before = max(map(refuse, files))
        for _ in range(REFUSED_ROUNDS):
            after = [refuse(file) for file in files]
        assert max(after) < before + ALLOWED_GROWTH_MIB
        with ThreadPoolExecutor(8) as clients:
            list(clients.map(refuse, files * 4))
        assert refuse(files[0]) < before + ALLOWED_GROWTH_MIB
