"""What is answered, and what is refused with which sentence."""

import io
import json
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Semaphore

import httpx
import numpy as np
import pytest
from PIL import Image

from mnist_pipeline.ml.coverage import THRESHOLD_OF_BEFORE, coverage_curve
from mnist_pipeline.ml.export import export
from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.ml.settings import TrainingSettings
from mnist_pipeline.serve import predicting
from mnist_pipeline.serve.decoding import read_images
from mnist_pipeline.task.preprocessing import read_image
from mnist_pipeline_tests.serve.service import Service
from mnist_pipeline_tests.task.drawing import drawn, encode
from mnist_pipeline_tests.task.examples import SPEC, TINY, embedded_images, png
from mnist_pipeline_tests.versions import deploy, save

TEST = embedded_images().test
ARRAY = TEST.images[0].tolist()


def text(data: bytes) -> str:
    return b64encode(data).decode()


def error(response: httpx.Response) -> tuple[int, str, str]:
    """Status, code and message; there is nothing else."""
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"code", "message"}
    return response.status_code, body["error"]["code"], body["error"]["message"]


def test_every_way_to_send_an_image_gives_the_predictors_answer(service, store, deployed):
    expected = Predictor.from_store(store).predict(TEST.images[:3])
    files = [png(image) for image in TEST.images[:3]]
    answers = [
        service.client.post("/predict", files=[("image", ("a.png", file, "image/png")) for file in files]),
        service.client.post("/predict", json={"images": [text(file) for file in files]}),
        service.client.post("/predict", json={"images": [image.tolist() for image in TEST.images[:3]]}),
    ]
    one = [
        service.predict(files[0]),
        service.client.post("/predict", json={"image": text(files[0])}),
        service.client.post("/predict", json={"image": ARRAY}),
        service.client.post("/predict", files={"any name": files[0]}),
        service.client.post("/predict", content=files[0], headers={"Content-Type": "application/octet-stream"}),
    ]
    for answer in answers + one:
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == deployed
        predictions = answer.json()["predictions"]
        count = 3 if answer in answers else 1
        assert [p["label"] for p in predictions] == expected.argmax(1)[:count].tolist()
        assert [p["confidence"] for p in predictions] == pytest.approx(expected.max(1)[:count], abs=1e-5)
        assert all("probabilities" not in p and "prepared" not in p for p in predictions)
    ids = [p["id"] for answer in answers + one for p in answer.json()["predictions"]]
    assert len(set(ids)) == len(ids) == 14


def test_probabilities_and_the_prepared_picture_on_request(service):
    file = encode(drawn())
    [prediction] = service.predict(file, probabilities=True, prepared=True).json()["predictions"]
    assert sum(prediction["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert (
        prediction["probabilities"][prediction["label"]] == prediction["confidence"] == max(prediction["probabilities"])
    )
    assert np.array_equal(prediction["prepared"], read_image(file, SPEC))


def test_needs_review_below_the_threshold(store, deployed):
    file = encode(drawn())
    for threshold, needed in [(1.0, True), (0.0, False)]:
        with Service(store, confidence_threshold=threshold) as service:
            assert service.predict(file).json()["predictions"][0]["needs_review"] is needed
            assert service.client.get("/model").json()["confidence_threshold"] == threshold


def test_without_a_threshold_the_model_says_from_where_on_it_may_answer(store, deployed, monkeypatch):
    curve = coverage_curve(np.array([0.99, 0.9, 0.7, 0.6]), np.array([True, True, False, True]))
    training = store.manifest(deployed).training.model_copy(update={"coverage": curve})
    load = type(store).load_onnx

    def with_a_curve(self, name):
        manifest, onnx = load(self, name)
        return manifest.model_copy(update={"training": training}), onnx

    with Service(store) as service:
        assert service.client.get("/model").json()["confidence_threshold"] == THRESHOLD_OF_BEFORE
    monkeypatch.setattr(type(store), "load_onnx", with_a_curve)
    for target, threshold in [(0.005, 0.9), (0.5, 0.0)]:
        with Service(store, target_error=target) as service:
            assert service.client.get("/model").json()["confidence_threshold"] == threshold


def test_pictures_unlike_the_training_data_are_told_counted_and_kept_for_review(store, trained, splits, labelled):
    settings = TrainingSettings(**TINY)
    exported = export(trained.weights, settings.architecture(), splits)
    version = save(store, trained, settings, onnx=exported.onnx)
    deploy(store, version.name, trained.weights)
    noise = np.random.default_rng(0).integers(0, 256, SPEC.array_shape, np.uint8).tolist()
    known = splits.train.images[0].tolist()
    with Service(store, labelled, confidence_threshold=0) as service:
        asked = {"images": [noise, known]}
        answer = service.client.post("/predict?prepared=true", json=asked).json()["predictions"]
        assert [prediction["unlike_training_data"] for prediction in answer] == [True, False]
        assert not any(prediction["needs_review"] for prediction in answer)
        assert "mnist_unlike_training_data_total 1.0" in service.client.get("/metrics").text
        [item] = service.client.get("/review/items").json()
        assert item["image"] == answer[0]["prepared"]


def animation(form: str) -> bytes:
    buffer = io.BytesIO()
    frames = [drawn(mode="RGB", paper="white", ink=ink) for ink in ("black", "red")]
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


PNG_FILE = encode(drawn())
WIDE = encode(Image.new("1", (10_001, 10_000)))
SCAN = b"\xff\xda\0\x08\1\1\0\1\x3f\x10"
MANY_SCANS = encode(drawn(), "JPEG", progressive=True)[:-2] + SCAN * 200 + b"\xff\xd9"
BOMB = encode(Image.new("1", (20_000, 20_000)))


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (b"", (400, "no_image", "there is no image in the request")),
        (b"hello", (422, "bad_image", "not an image in a known format")),
        (PNG_FILE[:20], (422, "bad_image", "")),
        (PNG_FILE[: len(PNG_FILE) // 2], (422, "bad_image", "broken image")),
        (animation("GIF"), (422, "bad_image", "animated")),
        (animation("PNG"), (422, "bad_image", "animated")),
        (animation("WEBP"), (422, "bad_image", "animated")),
        (encode(drawn(), "TIFF"), (422, "bad_image", "known format (PNG, JPEG, WEBP, BMP, GIF)")),
        (WIDE, (413, "too_large", "10001x10000: all in one request may have 25,000,000 pixels")),
        (BOMB, (413, "too_large", "pixels")),
        (MANY_SCANS, (422, "bad_image", "more than 100 scans")),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", (422, "bad_image", "known format")),
    ],
    ids=[
        "nothing",
        "text",
        "header only",
        "truncated",
        "gif",
        "apng",
        "webp",
        "tiff",
        "wide",
        "bomb",
        "scans",
        "eps",
    ],
)
def test_bad_files_are_refused_with_a_sentence(service, file, expected):
    status, code, message = error(service.predict(file))
    assert (status, code) == expected[:2]
    assert expected[2] in message


def with_value(value: object) -> str:
    rows = [list(row) for row in ARRAY]
    rows[3][4] = value
    return json.dumps({"image": rows})


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("", (400, "bad_json", "not JSON")),
        ("{", (400, "bad_json", "not JSON")),
        ("[1]", (400, "bad_json", "must be a JSON object")),
        ("{}", (400, "bad_json", "give either image or images")),
        ('{"image": "", "images": []}', (400, "bad_json", "give either image or images")),
        ('{"images": []}', (400, "no_image", "there is no image")),
        ('{"images": 3}', (400, "bad_json", "must be a list")),
        ('{"picture": 3}', (400, "bad_json", "unknown name 'picture'")),
        ('{"image": null}', (400, "bad_json", "neither text nor an array")),
        ('{"image": "_"}', (400, "bad_base64", "not base64")),
        ('{"image": "é"}', (400, "bad_base64", "not base64")),
        ('{"image": ""}', (422, "bad_image", "the file is empty")),
        ('{"image": [[1, 2], [3]]}', (422, "bad_array", "another shape")),
        ('{"image": [[1, 2], [3, 4]]}', (422, "bad_array", "another shape")),
        (json.dumps({"image": [ARRAY]}), (422, "bad_array", "another shape")),
        (json.dumps({"image": [[*ARRAY[0], 1], *ARRAY[1:]]}), (422, "bad_array", "another shape")),
        (json.dumps({"image": ["a" * 100_000] + [""] * 100_000}), (422, "bad_array", "another shape")),
        (with_value(True), (422, "bad_array", "fractions, words or other values")),
        (with_value("a" * 100_000), (422, "bad_array", "fractions, words or other values")),
        (json.dumps({"image": np.zeros(SPEC.array_shape, int).tolist()}), (422, "bad_image", "blank")),
        ('{"image": "' + "A" * (1 << 20) + '"}', (413, "too_large", "JSON may have 1 MiB")),
        (with_value(float("nan")), (422, "bad_array", "fractions, words or other values")),
        (with_value(0.5), (422, "bad_array", "fractions, words or other values")),
        (with_value("7"), (422, "bad_array", "fractions, words or other values")),
        (with_value(None), (422, "bad_array", "fractions, words or other values")),
        (with_value(10**30), (422, "bad_array", "values below or above")),
        (with_value(256), (422, "bad_array", "values below or above")),
        (with_value(-1), (422, "bad_array", "values below or above")),
        (json.dumps({"images": [ARRAY, [[1]]]}), (422, "bad_array", "image 2: ")),
        (json.dumps({"images": [ARRAY] * 65}), (413, "too_large", "more than 64 images")),
        ('{"image": ' + "[" * 100_000 + "]" * 100_000 + "}", (400, "bad_json", "not JSON")),
    ],
)
def test_bad_json_is_refused_with_a_sentence(service, body, expected):
    answer = service.client.post("/predict", content=body, headers={"Content-Type": "application/json"})
    status, code, message = error(answer)
    assert (status, code) == expected[:2]
    assert expected[2] in message


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("multipart/form-data", b"", (400, "bad_form", "boundary")),
        ("multipart/form-data; boundary*=x''a; boundary*0=b", b"x", (400, "bad_form", "boundary")),
        ('multipart/form-data; a="' + ";" * 30_000, b"x", (400, "bad_content_type", "512 characters")),
        ("multipart/form-data; boundary=x", b"garbage", (400, "bad_form", "cannot be read")),
        ("multipart/form-data; boundary=x", b"--x--\r\n", (400, "no_image", "there is no image")),
        ("text/plain", b"7", (415, "unsupported_media_type", "'text/plain' is not accepted: send an image file")),
        ("", b"7", (415, "unsupported_media_type", "the Content-Type is missing")),
    ],
)
def test_other_bodies_are_refused_with_a_sentence(service, kind, body, expected):
    status, code, message = error(service.client.post("/predict", content=body, headers={"Content-Type": kind}))
    assert (status, code) == expected[:2]
    assert expected[2] in message


def test_requests_and_pictures_that_are_too_large_are_refused(store, deployed):
    with Service(store, max_body_mib=0.01, max_megapixels=0.01) as service:
        assert error(service.predict(b"x" * 20_000))[:2] == (413, "too_large")
        chunks = (b"x" * 1000 for _ in range(20))  # its size is not announced
        answer = service.client.post("/predict", content=chunks, headers={"Content-Type": "image/png"})
        assert error(answer) == (413, "too_large", "the request is larger than 0.01 MiB")
        assert error(service.predict(encode(drawn())))[:2] == (413, "too_large")
        assert service.predict(png(TEST.images[0])).status_code == 200


def test_all_pictures_of_a_request_share_its_pixels(service):
    half = encode(Image.new("1", (4000, 4000)))
    assert error(service.client.post("/predict", files=[("image", half)] * 2))[:2] == (422, "bad_image")  # blank
    large = encode(drawn(size=(4000, 4000)))
    status, code, message = error(service.client.post("/predict", files=[("image", large)] * 2))
    assert (status, code) == (413, "too_large")
    assert message.startswith("image 2") or "all in one request" in message


def test_a_form_of_very_many_parts_is_refused_at_once(service):
    body = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 50_000 + b"--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert error(service.client.post("/predict", content=body, headers=kind))[:2] == (413, "too_large")


def test_requests_that_come_to_nothing_do_not_hold_up_the_others(service):
    small = [encode(drawn(size=(120, 120))) for _ in range(63)]
    bad = {"images": [text(file) for file in small] + [[[1]]]}
    done = Event()

    def hammer() -> None:
        while not done.is_set():
            assert service.client.post("/predict", json=bad).status_code == 422

    with ThreadPoolExecutor(8) as clients:
        hammering = [clients.submit(hammer) for _ in range(8)]
        try:
            for _ in range(3):
                assert service.client.post("/predict", json={"image": ARRAY}, timeout=60).status_code == 200
        finally:
            done.set()
        for future in hammering:
            future.result()


def test_a_request_that_never_ends_is_given_up(store, deployed):
    def slowly():
        yield b"x"
        time.sleep(1)
        yield b"x"

    with Service(store, body_seconds=0.3) as service:
        answer = service.client.post("/predict", content=slowly(), headers={"Content-Type": "image/png"})
        assert error(answer) == (408, "too_slow", "the request did not arrive whole within 0.3 s")


@pytest.fixture
def slow_reading(monkeypatch):
    """Of pictures that are read in a thread: what is released when one is begun, and what lets all go on."""
    begun, go_on = Semaphore(0), Event()

    def read_slowly(*arguments, quick=False):
        if not quick:
            begun.release()
            assert go_on.wait(60)
        return read_images(*arguments, quick=quick)

    monkeypatch.setattr(predicting, "read_images", read_slowly)
    return begun, go_on


def test_too_many_requests_at_a_time_are_refused_and_the_rest_is_answered(store, deployed, slow_reading):
    file, (begun, go_on) = encode(drawn(size=(3000, 3000))), slow_reading
    with Service(store, max_requests=2, decoders=2) as service, ThreadPoolExecutor(2) as clients:
        answers = [clients.submit(service.predict, file) for _ in range(2)]
        try:
            assert begun.acquire(timeout=60)
            assert begun.acquire(timeout=60)
            refused = service.predict(file)
        finally:
            go_on.set()
        assert error(refused)[:2] == (503, "overloaded")
        assert refused.headers["Retry-After"] == "1"
        assert [answer.result().status_code for answer in answers] == [200, 200]
        assert service.predict(png(TEST.images[0])).status_code == 200


def test_slow_pictures_do_not_hold_up_others(service, slow_reading):
    begun, go_on = slow_reading
    large = encode(drawn(size=(4900, 5000), mode="1", paper=1, ink=0))
    with ThreadPoolExecutor(6) as others:
        answers = [others.submit(service.predict, large) for _ in range(6)]
        try:
            assert begun.acquire(timeout=60)
            assert [service.predict(png(image)).status_code for image in TEST.images[:3]] == [200] * 3
            assert not any(answer.done() for answer in answers)
        finally:
            go_on.set()
    expected = service.predict(encode(drawn(size=(280, 280)))).json()["predictions"][0]["label"]
    assert {answer.result().json()["predictions"][0]["label"] for answer in answers} == {expected}
