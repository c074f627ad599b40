"""Labels that contradict the deployed model: marked, held back where there are many of a kind, and settled."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from upath import UPath

from mnist_pipeline.files.storage import storage_path
from mnist_pipeline.ml import review as review_queue
from mnist_pipeline.ml.labelled import read_labelled
from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.ml.review import HOUR, MOST_IN_AN_HOUR, ReviewQueue
from mnist_pipeline.ml.review_items import contradictions
from mnist_pipeline.serve.settings import ServeSettings
from mnist_pipeline.task.dataset import LabelledImages
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
    """Confirm or forget labels that wait, as the page does for those of one kind."""
    kind = next((item for item in review(service) if item["id"] in ids and item["reason"] == "held"), None)
    if kind is None:
        kind = {"source": "0" * 16, "given": GIVEN, "given_name": SPEC.class_names[GIVEN], "label": SAID}
    group = {name: kind[name] for name in ("source", "given", "given_name", "label")}
    answer = service.client.post("/review/held", json=group | {"ids": ids, "confirm": confirm})
    assert answer.is_success, answer.text
    return answer.json()


def come_from(address: str) -> dict[str, str]:
    return {"X-Forwarded-For": address}


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
    assert [answer["status"] for answer in answers] == [201] * MOST_IN_AN_HOUR + [202] * 10
    assert [answer["held"] for answer in answers] == [False] * MOST_IN_AN_HOUR + [True] * 10
    assert len(files(labelled)) == MOST_IN_AN_HOUR
    assert answers[-1]["waiting"] == MOST_IN_AN_HOUR
    assert service.metric("mnist_corrections_total") == MOST_IN_AN_HOUR
    assert service.metric("mnist_corrections_held_total") == 10
    reasons = [item["reason"] for item in review(service)]
    assert reasons == ["held"] * 10 + ["contradiction"] * MOST_IN_AN_HOUR  # what waits is looked at first
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
    assert service.client.delete(f"/corrections/{ids[22]}").status_code == 404
    # Taken back, it waits again.
    assert service.client.delete(f"/corrections/{ids[20]}").status_code == 204
    assert f"{FOLDER}/{ids[20]}.png" not in files(labelled)
    assert set(held(service)) == {ids[20], ids[23]}


def test_once_all_were_decided_about_their_kind_trains_again(store, deployed, labelled, pictures):
    with Service(store, labelled, second_opinion=True) as service:
        correct(service, pictures[0], GIVEN)
        correct(service, pictures[0], GIVEN, confirmed=True)
    with Service(store, labelled) as service:
        assert not correct(service, pictures[1], GIVEN)["held"]


def test_what_was_decided_is_not_asked_by_runs_either(store, deployed, labelled, pictures):
    with Service(store, labelled, second_opinion=True) as service:
        ids = [correct(service, picture, GIVEN)["id"] for picture in pictures[:3]]
        settle(service, ids[:2], confirm=True)
        correct(service, pictures[2], GIVEN, confirmed=True)
        ids.append(correct(service, pictures[3], GIVEN, confirmed=True)["id"])
    labels = LabelledImages(np.array(pictures[:5], np.uint8), np.full(5, GIVEN, np.uint8))
    _, items = contradictions(Predictor.from_store(store), labels, SPEC)
    assert ReviewQueue(UPath(labelled.parent / "review"), 200).put(items, 50) == 1
    with Service(store, labelled) as service:
        assert [item["image"] for item in review(service)] == [pictures[4]]


def test_a_label_that_is_taken_back_is_shown_no_more(service, labelled, pictures):
    stored = correct(service, pictures[0], GIVEN)
    assert len(review(service)) == 1
    assert service.client.delete(f"/corrections/{stored['id']}").status_code == 204
    assert review(service) == []


def test_what_is_of_no_class_leaves_the_queue_and_trains_no_more(store, deployed, labelled, pictures):
    with Service(store, labelled, confidence_threshold=1) as service:
        service.client.post("/predict", json={"image": pictures[0]})
        correct(service, pictures[1], GIVEN)
        assert len(files(labelled)) == 1
        for item in review(service):
            assert service.client.delete(f"/review/items/{item['id']}").status_code == 204
        assert review(service) == []
        assert files(labelled) == []
        service.client.post("/predict", json={"image": pictures[0]})
        assert review(service) == []


@pytest.mark.parametrize("proxies", ["nonsense", "10.0.0.0/33", "*", "127.0.0.1, x"])
def test_what_is_no_address_of_a_proxy_is_refused(proxies):
    with pytest.raises(ValueError, match="is neither an address such as"):
        ServeSettings(trusted_proxies=proxies)


def test_taking_back_a_label_that_waits_leaves_the_one_that_trains(store, deployed, labelled, pictures):
    with Service(store, labelled, second_opinion=True) as service:
        stored = correct(service, pictures[0], SAID)
        assert correct(service, pictures[0], GIVEN)["held"]
        assert service.client.delete(f"/corrections/{stored['id']}").status_code == 204
        assert held(service) == []
        assert files(labelled) == [f"{SPEC.class_folders[SAID]}/{stored['id']}.png"]


def test_harmless_labels_wash_away_no_marks(store, deployed, labelled, pictures):
    with Service(store, labelled, review_items=5, confidence_threshold=1) as service:
        looked_at = correct(service, pictures[0], GIVEN)["id"]
        correct(service, pictures[0], GIVEN, confirmed=True)
        marked = [correct(service, picture, GIVEN)["id"] for picture in pictures[1:5]]
        service.client.post("/predict", json={"images": pictures[5:25]})
        for picture in pictures[25:40]:
            correct(service, picture, SAID)
        reasons = {item["id"]: item["reason"] for item in review(service)}
        assert [reasons.get(id) for id in marked] == ["contradiction"] * 4
        assert looked_at not in reasons
        # What is shown for its label stays so when it is predicted once more.
        service.client.post("/predict", json={"image": pictures[1]})
        assert {item["id"]: item["reason"] for item in review(service)}[marked[0]] == "contradiction"


def test_where_nobody_reviews_nothing_is_confirmed(store, deployed, labelled, pictures):
    with (
        Service(store, labelled, second_opinion=True, review=False) as public,
        Service(store, labelled, second_opinion=True) as internal,
    ):
        body = {"image": pictures[0], "label": GIVEN}
        assert error(public.client.post("/corrections", json=body | {"confirmed": True}))[:2] == (403, "review_off")
        waiting = public.client.post("/corrections", json=body).json()["id"]
        assert error(public.client.get("/review/items"))[:2] == (403, "review_off")
        settling = GROUP | {"ids": [waiting], "confirm": True}
        assert error(public.client.post("/review/held", json=settling))[:2] == (403, "review_off")
        assert files(labelled) == []
        assert settle(internal, held(internal), confirm=True)["settled"] == 1
        assert internal.metric("mnist_corrections_total") == 1
        assert files(labelled) == [f"{FOLDER}/{waiting}.png"]


def test_so_many_wait_of_a_source_and_no_more(store, deployed, labelled, pictures, monkeypatch):
    monkeypatch.setattr(review_queue, "MOST_HELD_OF_A_KIND", 2)
    with Service(store, labelled, second_opinion=True) as service:
        for picture in (*pictures[:2], pictures[0]):
            assert correct(service, picture, GIVEN)["held"]
        refused = service.client.post("/corrections", json={"image": pictures[2], "label": GIVEN})
        assert error(refused)[:2] == (429, "too_many_wait")
        assert "confirms them on /review" in error(refused)[2]
        assert refused.headers["Retry-After"] == "3600"


def test_a_damaged_file_among_what_waits_stops_no_other(store, deployed, labelled, pictures):
    with Service(store, labelled, second_opinion=True) as service:
        ids = [correct(service, picture, GIVEN)["id"] for picture in pictures[:3]]
        [damaged] = (labelled.parent / "review").rglob(f"*{ids[0]}.json")
        damaged.write_text("{")
        assert set(held(service)) == set(ids[1:])
        assert settle(service, ids, confirm=True)["settled"] == 2


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
        assert 1 <= admitted <= MOST_IN_AN_HOUR
        assert len(files(labelled)) == admitted
        assert len(held(one)) == 40 - admitted


def test_sources_are_told_apart_by_their_address(store, deployed, labelled, pictures):
    def send(service: Service, picture: list, address: str) -> bool:
        body = {"image": picture, "label": GIVEN}
        return service.client.post("/corrections", json=body, headers=come_from(address)).json()["held"]

    with Service(store, labelled, trusted_proxies="127.0.0.1") as service:
        assert [send(service, picture, "203.0.113.7") for picture in pictures[:21]] == [False] * 20 + [True]
        assert not send(service, pictures[21], "203.0.113.8")
        assert send(service, pictures[22], "::ffff:203.0.113.7")
        # All of an IPv6 network is one source.
        sent = [send(service, picture, f"2001:db8::{number:x}") for number, picture in enumerate(pictures[23:44])]
        assert sent == [False] * 20 + [True]
        assert not send(service, pictures[44], "2001:db8:0:1::1")


def test_nobody_is_believed_to_come_from_elsewhere(service, labelled, pictures):
    sent = [
        service.client.post(
            "/corrections", json={"image": picture, "label": GIVEN}, headers=come_from(f"203.0.113.{number}")
        ).json()["held"]
        for number, picture in enumerate(pictures[:21])
    ]
    assert sent == [False] * 20 + [True]


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


GROUP = {"source": "0" * 16, "given": GIVEN, "given_name": SPEC.class_names[GIVEN], "label": SAID}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (GROUP | {"ids": ["../../models/production"], "confirm": True}, (422, "bad_request")),
        (GROUP | {"ids": [], "confirm": True, "source": "../../models"}, (422, "bad_request")),
        (GROUP | {"ids": ["0" * 32] * 1001, "confirm": True}, (422, "bad_request")),
        (GROUP | {"ids": []}, (422, "bad_request")),
        (GROUP | {"ids": [], "confirm": "yes"}, (422, "bad_request")),
        (GROUP | {"ids": [], "confirm": True, "given_name": "no such"}, (409, "other_classes")),
        ([], (400, "bad_json")),
    ],
)
def test_bad_requests_to_settle_are_refused(service, body, code):
    assert error(service.client.post("/review/held", json=body))[:2] == code


def test_what_is_confirmed_is_what_was_shown(store, deployed, labelled, pictures):
    with Service(store, labelled, second_opinion=True, trusted_proxies="127.0.0.1") as service:
        for address, label in (("203.0.113.7", GIVEN), ("203.0.113.8", 7)):
            body = {"image": pictures[0], "label": label}
            id = service.client.post("/corrections", json=body, headers=come_from(address)).json()["id"]
        newest = next(item for item in review(service) if item["given"] == 7)
        # One sender takes its label back; that of the other waits.
        assert service.client.delete(f"/corrections/{id}", headers=come_from("203.0.113.8")).status_code == 204
        shown = {name: newest[name] for name in ("source", "given", "given_name", "label")}
        gone = service.client.post("/review/held", json=shown | {"ids": [id], "confirm": True}).json()
        assert gone["settled"] == 0
        assert files(labelled) == []
        # A label that agrees with the model trains, and settles nothing that somebody else said.
        body = {"image": pictures[0], "label": SAID}
        assert service.client.post("/corrections", json=body, headers=come_from("203.0.113.9")).status_code == 201
        assert [item["given"] for item in review(service)] == [GIVEN]
        assert settle(service, [id], confirm=True)["settled"] == 1
        assert files(labelled) == [f"{FOLDER}/{id}.png"]


def test_what_waits_of_images_of_another_shape_is_in_nobodys_way(store, deployed, labelled, pictures):
    with Service(store, labelled, second_opinion=True) as service:
        correct(service, pictures[0], GIVEN)
        [path] = (labelled.parent / "review" / "held").iterdir()
        other = json.loads(path.read_text()) | {"image": [[0] * 8] * 8, "id": "1" * 32}
        path.with_name(path.name.replace(f"{SPEC.image_shape[0]}x{SPEC.image_shape[1]}", "8x8")).write_text(
            json.dumps(other)
        )
        path.unlink()
    with Service(store, labelled) as service:
        assert review(service) == []
        assert not correct(service, pictures[1], GIVEN)["held"]


def test_a_file_from_the_future_switches_nothing_off(service, labelled, pictures):
    correct(service, pictures[0], GIVEN)
    for path in (labelled.parent / "review").rglob("*.json"):
        then = path.stat().st_mtime + 7200
        os.utime(path, (then, then))
    assert [correct(service, picture, GIVEN)["held"] for picture in pictures[1:22]] == [False] * 19 + [True] * 2


def test_an_image_sent_to_several_services_at_once_is_no_error(store, deployed, labelled, pictures):
    with (
        Service(store, labelled, second_opinion=True) as one,
        Service(store, labelled, second_opinion=True) as other,
        ThreadPoolExecutor(6) as clients,
    ):
        for picture in pictures[:10]:
            sent = list(clients.map(lambda n, p=picture: correct((one, other)[n % 2], p, GIVEN)["status"], range(6)))
            assert set(sent) == {202}
        assert len(held(one)) == 10


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
    correct(service, pictures[0], GIVEN)
    [path] = (labelled.parent / "review" / "labels").iterdir()
    [item] = review(service)
    before = {name: item[name] for name in ("id", "image", "label", "class_name", "confidence", "model")}
    (path.parents[1] / path.name).write_text(json.dumps(before))
    path.unlink()
    assert [(item["reason"], item["given"]) for item in review(service)] == [("unsure", None)]
