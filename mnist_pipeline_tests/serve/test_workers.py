"""Several processes on one port count, review and follow as one service."""

import os
import signal
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import psutil

from mnist_pipeline_tests.live import wait_until
from mnist_pipeline_tests.serve.service import Service, process
from mnist_pipeline_tests.serve.test_predict import TEST
from mnist_pipeline_tests.task.examples import png
from mnist_pipeline_tests.versions import deploy

IMAGE = {"image": TEST.images[0].tolist()}


def workers(server: int) -> list[int]:
    """The processes that answer; beside them is one of Python's own, which looks after what they share."""
    found = []
    for child in psutil.Process(server).children():
        with suppress(psutil.Error):  # one that has just ended
            found += [child.pid] if "spawn_main" in " ".join(child.cmdline()) else []
    return found


def counted(url: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    name = 'mnist_requests_total{path="/predict",status="200"}'
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def test_processes_of_one_service(store, deployed, good, tmp_path):
    options = ("--workers", "2", "--confidence-threshold", "1", "--reload-seconds", "0.2")
    with process("--store", store.base_path, *options, STORAGE_ROOT=str(tmp_path)) as (url, server, log):
        wait_until(lambda: len(workers(server.pid)) == 2, "two workers")
        wait_until(lambda: log.read_text().count("Application startup complete") == 2, "both to be ready")
        for _ in range(40):  # each on a connection of its own, which either may accept
            assert httpx.post(f"{url}/predict", json=IMAGE).status_code == 200
        assert {counted(url) for _ in range(10)} == {40}
        [item] = wait_for_items(url)
        assert item["image"] == IMAGE["image"]

        gone = workers(server.pid)[0]
        os.kill(gone, signal.SIGKILL)
        wait_until(lambda: len(set(workers(server.pid)) - {gone}) == 2, "another worker", 60)
        wait_until(lambda: log.read_text().count("Application startup complete") == 3, "it to be ready")
        assert httpx.post(f"{url}/predict", json=IMAGE).status_code == 200
        assert {counted(url) for _ in range(10)} == {41}  # what the dead one had counted is not lost

        again = store.production().version
        deploy(store, again, good.weights)
        decision = store.production().decided_at.isoformat().replace("+00:00", "Z")
        wait_until(lambda: all(seen(url) == decision for _ in range(10)), "all to follow")
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def wait_for_items(url: str) -> list[dict]:
    found: list[dict] = []

    def look() -> bool:
        found[:] = httpx.get(f"{url}/review/items").json()
        return bool(found)

    wait_until(look, "it to be written")
    return found


def seen(url: str) -> str:
    return httpx.get(f"{url}/model").json()["deployed_at"]


def test_services_over_one_storage_have_one_queue(store, deployed, labelled: Path):
    with ExitStack() as stack:
        one, other = (stack.enter_context(Service(store, labelled, confidence_threshold=1)) for _ in range(2))
        one.predict(png(TEST.images[0]))
        wait_until(lambda: other.client.get("/review/items").json(), "it to be stored")
        [item] = other.client.get("/review/items").json()
        answer = other.client.post("/corrections", json=IMAGE | {"label": item["label"]})
        assert answer.json()["id"] == item["id"]
        assert one.client.get("/review/items").json() == []
        other.client.delete(f"/corrections/{item['id']}")
        assert one.client.get("/review/items").json() == [item]


def test_what_was_labelled_elsewhere_is_not_asked_about(store, deployed, labelled: Path):
    """Though it was labelled while the service that predicted it had not stored it yet."""
    with ExitStack() as stack:
        late = stack.enter_context(Service(store, labelled, confidence_threshold=1, reload_seconds=3600))
        other = stack.enter_context(Service(store, labelled, confidence_threshold=1))
        [predicted] = late.predict(png(TEST.images[0])).json()["predictions"]
        other.client.post("/corrections", json=IMAGE | {"label": predicted["label"]})
        assert late.client.get("/review/items").json() == []


def test_a_file_that_is_nobodys_does_not_stop_the_review(store, deployed, labelled: Path):
    (review := labelled.parent / "review").mkdir()
    (review / "notes.json").write_text("{}")
    (review / "notes.txt").write_text("mine")
    with Service(store, labelled, confidence_threshold=1, review_items=2) as service:
        for image in TEST.images[:5]:
            service.predict(png(image))
            service.client.get("/review/items")
        assert len(service.client.get("/review/items").json()) == 2
    assert {"notes.txt", "notes.json"} < {path.name for path in review.iterdir()}


def test_what_is_to_be_reviewed_outlives_the_service(store, deployed, labelled: Path):
    with Service(store, labelled, confidence_threshold=1) as service:
        service.predict(png(TEST.images[0]))
    with Service(store, labelled) as service:
        assert len(service.client.get("/review/items").json()) == 1
