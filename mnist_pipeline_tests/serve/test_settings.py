"""Changing a setting changes what the service does; those of refusals and reloads are tested with them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest

from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.serve import deployment, predicting
from mnist_pipeline.serve.settings import ServeSettings
from mnist_pipeline_tests.serve.service import Service, process
from mnist_pipeline_tests.serve.test_predict import ARRAY, TEST, error
from mnist_pipeline_tests.task.drawing import drawn, encode
from mnist_pipeline_tests.task.examples import png

LARGE = encode(drawn(size=(4900, 5000), mode="1", paper=1, ink=0))


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_of_a_forward_pass(store, deployed, threads, monkeypatch):
    """The runtime makes them when it loads a model; the one that asks is one of them."""

    def running() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    made = []

    class Spy(Predictor):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            before = running()
            super().__init__(*arguments, **options)
            made.append(running() - before)

    monkeypatch.setattr(deployment, "Predictor", Spy)
    with Service(store, threads=threads) as service:
        assert service.client.post("/predict", json={"image": ARRAY}).status_code == 200
    assert made == [threads - 1]


@pytest.mark.parametrize("decoders", [1, 3])
def test_large_requests_read_at_a_time(store, deployed, decoders, monkeypatch):
    """As many as are allowed are in work before the first one is done."""
    reading, most, done = [], [], Event()
    read_images = predicting.read_images

    def slowly(*arguments, quick=False):
        if not quick:
            reading.append(1)
            most.append(len(reading))
            if len(reading) == decoders:
                done.set()
            assert done.wait(30)
            reading.pop()
        return read_images(*arguments, quick=quick)

    monkeypatch.setattr(predicting, "read_images", slowly)
    with Service(store, decoders=decoders) as service, ThreadPoolExecutor(6) as clients:
        answers = list(clients.map(service.predict, [LARGE] * 6))
    assert {answer.status_code for answer in answers} == {200}
    assert max(most) == decoders


def test_bytes_held_by_all_requests_together(store, deployed):
    with Service(store, max_held_mib=0.01) as service:
        assert error(service.predict(b"x" * 20_000))[:2] == (503, "overloaded")
        assert service.predict(png(TEST.images[0])).status_code == 200  # what was held is let go


def test_images_in_one_request(store, deployed):
    with Service(store, max_images=2) as service:
        assert service.client.post("/predict", json={"images": [ARRAY] * 2}).status_code == 200
        answer = service.client.post("/predict", json={"images": [ARRAY] * 3})
        assert error(answer) == (413, "too_large", "more than 2 images in one request: send several requests")


def test_another_address_is_warned_of_without_a_token(store, deployed, tmp_path):
    with process("--store", store.base_path, "--host", "0.0.0.0", STORAGE_ROOT=str(tmp_path)) as (url, _, log):
        assert url.startswith("http://0.0.0.0:")
        assert httpx.get(f"{url.replace('0.0.0.0', '127.0.0.1')}/readyz").status_code == 200
        assert "listening on 0.0.0.0 without SERVE_TOKEN" in log.read_text()


def test_a_host_is_a_name_not_an_address_of_a_page():
    with pytest.raises(ValueError, match="allowed_hosts"):
        ServeSettings(allowed_hosts="https://digits.example/")


def test_names_by_which_it_may_be_reached(store, deployed):
    def status(service: Service, host: str) -> int:
        return service.client.get("/readyz", headers={"Host": host}).status_code

    with Service(store) as service:  # DNS rebinding: a page elsewhere by a name that points here
        answer = service.client.post("/predict", json={"image": ARRAY}, headers={"Host": "evil.example:8000"})
        assert error(answer)[:2] == (403, "foreign_host")
        assert [status(service, host) for host in ("localhost:8000", "LOCALHOST", "[::1]:8000", "evil.example")] == [
            *[200] * 3,
            403,
        ]
    with Service(store, allowed_hosts="digits.example, 10.0.0.7") as service:
        assert [status(service, host) for host in ("digits.example", "10.0.0.7:80", "localhost")] == [200, 200, 200]
        assert status(service, "evil.example") == 403
    with Service(store, host="0.0.0.0", allowed_hosts="digits.example") as service:
        assert [status(service, host) for host in ("digits.example", "localhost")] == [200, 403]
    with Service(store, host="0.0.0.0") as service:
        assert status(service, "anything.example") == 200
    with Service(store, token="a-token") as service:
        assert status(service, "anything.example") == 200


NO_NUMBERS = ("host", "allowed_hosts", "trusted_proxies", "review")


@pytest.mark.parametrize("name", [name for name in ServeSettings.model_fields if name not in NO_NUMBERS])
def test_values_out_of_range_are_refused_with_their_name(name):
    with pytest.raises(ValueError, match=rf"{name}\n.*(greater|less) than"):
        ServeSettings(**{name: -1})
