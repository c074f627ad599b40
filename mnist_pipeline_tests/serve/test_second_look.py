"""Labels that contradict the deployed model: marked, held back where there are many of a kind, and settled."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from mnist_pipeline.files.storage import storage_path
from mnist_pipeline.ml.labelled import read_labelled
from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.ml.review import HOUR
from mnist_pipeline.ml.review_items import MOST_OF_A_KIND
from mnist_pipeline_tests.serve.service import Service
from mnist_pipeline_tests.serve.test_feedback import correct, files
from mnist_pipeline_tests.serve.test_predict import error
from mnist_pipeline_tests.task.examples import SPEC, embedded_images

SAID, GIVEN = 4, 9
FOLDER = SPEC.class_folders[GIVEN]


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return embedded_images().train.images


@pytest.fixture
def pictures(store, deployed, images) -> list:
    """Images that the deployed model gives one label."""
    said = Predictor.from_store(store).predict(images).argmax(1)
    return images[said == SAID][:60].tolist()


def review(service: Service) -> list[dict]:
    return service.client.get("/review/items").json()


def held(service: Service) -> list[str]:
    return [item["id"] for item in review(service) if item["reason"] == "held"]


def settle(service: Service, ids: list[str], confirm: bool) -> dict:
    answer = service.client.post("/review/held", json={"ids": ids, "confirm": confirm})
    assert answer.is_success, answer.text
    return answer.json()


def come_from(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr("uvicorn.protocols.http.httptools_impl.get_remote_addr", lambda _: (address, 1))


def test_a_label_that_contradicts_the_model_trains_and_is_marked(service, labelled, pictures):
    stored = correct(service, pictures[0], GIVEN)
    assert (stored["status"], stored["held"]) == (201, False)
    assert files(labelled) == [f"{FOLDER}/{stored['id']}.png"]
    [item] = review(service)
    assert item["id"] == stored["id"] and item["image"] == pictures[0]
    assert (item["reason"], item["given"], item["given_name"], item["label"]) == (
        *("contradiction", GIVEN),
        *(SPEC.class_names[GIVEN], SAID),
    )
    assert 0.1 < item["confidence"] <= 1
    assert "127.0.0.1" not in str(item)
    assert correct(service, pictures[0], GIVEN)["status"] == 200  # a double tap
    assert correct(service, pictures[0], GIVEN, confirmed=True)["status"] == 200
    assert review(service) == []


def test_a_label_that_agrees_with_the_model_is_not_marked(service, labelled, pictures):
    assert correct(service, pictures[0], SAID)["status"] == 201
    assert review(service) == []


def test_more_than_some_of_a_kind_are_held_back_until_somebody_confirms_them(service, labelled, pictures):
    answers = [correct(service, picture, GIVEN) for picture in pictures[:30]]
    assert [answer["status"] for answer in answers] == [201] * MOST_OF_A_KIND + [202] * 10
    assert [answer["held"] for answer in answers] == [False] * MOST_OF_A_KIND + [True] * 10
    assert len(files(labelled)) == MOST_OF_A_KIND
    assert answers[-1]["waiting"] == MOST_OF_A_KIND
    assert service.metric("mnist_corrections_total") == MOST_OF_A_KIND
    assert service.metric("mnist_corrections_held_total") == 10
    reasons = [item["reason"] for item in review(service)]
    assert reasons == ["held"] * 10 + ["contradiction"] * MOST_OF_A_KIND  # what waits is looked at first
    assert len({item["source"] for item in review(service)}) == 1
    assert correct(service, pictures[30], 7)["status"] == 201  # another kind
    assert correct(service, pictures[31], SAID)["status"] == 201  # it agrees with the model

    waiting = held(service)
    assert set(waiting) == {answer["id"] for answer in answers[20:]}
    assert settle(service, waiting[:4], confirm=True)["settled"] == 4
    assert settle(service, waiting[4:7], confirm=False)["settled"] == 3
    assert settle(service, waiting[:7], confirm=True)["settled"] == 0  # none of them waits any more
    assert set(held(service)) == set(waiting[7:])
    stored = {name.partition("/")[2] for name in files(labelled) if name.startswith(f"{FOLDER}/")}
    assert stored == {f"{answer['id']}.png" for answer in answers[:20]} | {f"{id}.png" for id in waiting[:4]}


def test_what_waits_is_decided_one_by_one_too(service, labelled, pictures):
    ids = [correct(service, picture, GIVEN)["id"] for picture in pictures[:24]]
    assert correct(service, pictures[20], GIVEN, confirmed=True)["status"] == 201
    assert correct(service, pictures[21], SAID, confirmed=True)["status"] == 201
    assert service.client.delete(f"/corrections/{ids[22]}").status_code == 204  # by whoever had sent it
    assert held(service) == [ids[23]]
    assert {f"{FOLDER}/{ids[20]}.png", f"{SPEC.class_folders[SAID]}/{ids[21]}.png"} <= set(files(labelled))
    # Taken back, it waits again.
    assert service.client.delete(f"/corrections/{ids[20]}").status_code == 204
    assert set(held(service)) == {ids[20], ids[23]}
    assert service.client.delete(f"/corrections/{ids[22]}").status_code == 404


def test_while_one_waits_the_rest_of_its_kind_waits_however_long_it_takes(store, deployed, labelled, pictures):
    with Service(store, labelled) as service:
        for picture in pictures[:21]:
            last = correct(service, picture, GIVEN)
    # An hour later, by the clock of the storage.
    for path in (labelled.parent / "review" / "contradictions").rglob("*.json"):
        then = path.stat().st_mtime - HOUR.total_seconds() - 1
        os.utime(path, (then, then))
    with Service(store, labelled) as service:  # what is counted outlives the process
        assert correct(service, pictures[21], GIVEN)["held"]
        settle(service, [last["id"], *held(service)], confirm=False)
        assert not any(correct(service, picture, GIVEN)["held"] for picture in pictures[22:42])
        assert correct(service, pictures[42], GIVEN)["held"]
    assert len(list((labelled.parent / "review" / "contradictions").rglob("*.json"))) == 20  # the old ones are gone


def test_services_over_one_place_count_together_and_at_the_same_time(store, deployed, labelled, pictures):
    with Service(store, labelled) as one, Service(store, labelled) as other, ThreadPoolExecutor(8) as clients:
        sent = list(clients.map(lambda n: correct((one, other)[n % 2], pictures[n], GIVEN), range(40)))
        admitted = sum(not answer["held"] for answer in sent)
        assert 1 <= admitted <= MOST_OF_A_KIND
        assert len(files(labelled)) == admitted
        assert len(held(one)) == 40 - admitted


def test_sources_are_told_apart_by_their_address(service, labelled, pictures, monkeypatch):
    for picture in pictures[:21]:
        last = correct(service, picture, GIVEN)
    assert last["held"]
    service.client.close()
    for number, (address, expected) in enumerate(
        [("203.0.113.7", False), ("::ffff:127.0.0.1", True), ("2001:db8::1", False)], start=21
    ):
        come_from(monkeypatch, address)
        with service_client(service) as client:
            body = {"image": pictures[number], "label": GIVEN}
            assert client.post("/corrections", json=body).json()["held"] is expected, address


def test_all_of_an_ipv6_network_is_one_source(service, labelled, pictures, monkeypatch):
    for number, picture in enumerate(pictures[:21]):
        come_from(monkeypatch, f"2001:db8::{number:x}")
        with service_client(service) as client:
            answer = client.post("/corrections", json={"image": picture, "label": GIVEN}).json()
    assert answer["held"]


def service_client(service: Service) -> httpx.Client:
    return httpx.Client(base_url=service.url, timeout=60)


def test_with_a_second_opinion_every_contradiction_waits(store, deployed, labelled, pictures):
    with Service(store, labelled, second_opinion=True) as service:
        assert correct(service, pictures[0], SAID)["status"] == 201
        stored = correct(service, pictures[1], GIVEN)
        assert (stored["status"], stored["held"], stored["waiting"]) == (202, True, 1)
        assert held(service) == [stored["id"]]
        settle(service, [stored["id"]], confirm=True)
        assert f"{FOLDER}/{stored['id']}.png" in files(labelled)


def test_what_waits_is_not_lost_to_newer_items(store, deployed, labelled, pictures):
    with Service(store, labelled, second_opinion=True, review_items=3, confidence_threshold=1) as service:
        ids = [correct(service, picture, GIVEN)["id"] for picture in pictures[:5]]
        service.client.post("/predict", json={"images": pictures[5:25]})
        assert len(held(service)) == 3  # so many are shown at a time
        settle(service, held(service), confirm=True)
        settle(service, held(service), confirm=True)
        assert {f"{FOLDER}/{id}.png" for id in ids} == set(files(labelled))
        assert held(service) == []


def test_a_confirmed_label_is_looked_at_again_when_it_is_contradicted(service, labelled, pictures):
    correct(service, pictures[0], SAID, confirmed=True)
    stored = correct(service, pictures[0], GIVEN)
    assert [item["reason"] for item in review(service)] == ["contradiction"]
    assert files(labelled) == [f"{FOLDER}/{stored['id']}.png"]  # the last word counts


def test_a_contradiction_that_cannot_be_noted_is_not_taken(service, labelled, pictures):
    place = labelled.parent / "review"
    place.write_text("a file where a folder should be")
    answer = service.client.post("/corrections", json={"image": pictures[0], "label": GIVEN})
    assert error(answer)[:2] == (503, "storage_failed")
    assert not labelled.exists()
    place.unlink()
    assert correct(service, pictures[0], GIVEN)["status"] == 201


def test_held_labels_count_for_the_pace(store, deployed, labelled, pictures):
    with Service(store, labelled, second_opinion=True, corrections_per_minute=2) as service:
        assert [correct(service, picture, GIVEN)["status"] for picture in pictures[:2]] == [202, 202]
        refused = service.client.post("/corrections", json={"image": pictures[2], "label": GIVEN})
        assert error(refused)[:2] == (429, "too_many_corrections")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"ids": ["../../models/production"], "confirm": True}, (422, "bad_request")),
        ({"ids": ["0" * 32] * 1001, "confirm": True}, (422, "bad_request")),
        ({"ids": []}, (422, "bad_request")),
        ({"ids": [], "confirm": "yes"}, (422, "bad_request")),
        ([], (400, "bad_json")),
    ],
)
def test_bad_requests_to_settle_are_refused(service, body, code):
    assert error(service.client.post("/review/held", json=body))[:2] == code


def test_unknown_images_are_settled_by_nobody(service):
    assert settle(service, ["0" * 32], confirm=True) == {"settled": 0, "waiting": 0}


def test_labels_wait_in_a_bucket_too(store, deployed, s3_bucket, s3_url, pictures):
    root = storage_path(f"s3://{s3_bucket}/labelled", s3_url)
    with Service(store, root) as service:
        answers = [correct(service, picture, GIVEN) for picture in pictures[:22]]
        assert [answer["held"] for answer in answers] == [False] * 20 + [True] * 2
        settle(service, held(service), confirm=True)
    assert read_labelled(root, SPEC).images.labels.tolist() == [GIVEN] * 22


def test_items_of_before_reasons_were_told_are_shown(service, labelled, pictures):
    stored = correct(service, pictures[0], GIVEN)
    path = labelled.parent / "review" / f"{stored['id']}.json"
    [item] = review(service)
    before = {name: item[name] for name in ("id", "image", "label", "class_name", "confidence", "model")}
    path.write_text(json.dumps(before))
    assert [(item["reason"], item["given"]) for item in review(service)] == [("unsure", None)]
