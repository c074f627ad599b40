"""Corrections land where the pipeline watches, once, and unsure predictions are kept for review."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import numpy as np
import pytest
from PIL import Image
from upath import UPath

from mnist_pipeline.files.folders import Walk
from mnist_pipeline.files.storage import storage_path
from mnist_pipeline.ml.labelled import read_labelled
from mnist_pipeline.serve import corrections
from mnist_pipeline_tests.live import wait_until
from mnist_pipeline_tests.serve.conftest import GOOD
from mnist_pipeline_tests.serve.service import Service
from mnist_pipeline_tests.serve.test_predict import ARRAY, TEST, error
from mnist_pipeline_tests.task.examples import SPEC, embedded_images
from mnist_pipeline_tests.versions import save

LABEL = int(TEST.labels[0])
OTHER = (LABEL + 1) % SPEC.classes
BLANK = np.zeros(SPEC.array_shape, int).tolist()


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def correct(service: Service, image: object = ARRAY, label: object = LABEL, **more: object) -> dict:
    answer = service.client.post("/corrections", json={"image": image, "label": label, **more})
    assert answer.is_success, answer.text
    return answer.json() | {"status": answer.status_code}


def test_a_correction_is_stored_as_the_pipeline_will_read_it(service, labelled):
    stored = correct(service)
    assert stored["status"] == 201
    assert files(labelled) == [f"{LABEL}/{stored['id']}.png"]
    read, skipped = read_labelled(UPath(labelled), SPEC)
    assert not skipped
    assert read.labels.tolist() == [LABEL]
    assert np.array_equal(read.images[0], TEST.images[0])


def test_a_double_tap_stores_one(service, labelled):
    with ThreadPoolExecutor(8) as taps:
        answers = list(taps.map(lambda _: correct(service), range(8)))
    assert sorted(answer["status"] for answer in answers) == [200] * 7 + [201]
    assert len(files(labelled)) == 1
    assert service.metric("mnist_corrections_total") == 1


def test_the_last_word_counts_also_after_a_restart(store, deployed, labelled):
    with Service(store, labelled) as service:
        correct(service, label=OTHER)
    with Service(store, labelled) as service:
        last = correct(service, label=LABEL)
    assert files(labelled) == [f"{LABEL}/{last['id']}.png"]


def test_a_correction_can_be_taken_back_and_no_other_file(service, labelled):
    other = labelled / str(OTHER) / "somebody-else.png"
    other.parent.mkdir(parents=True)
    Image.fromarray(TEST.images[1]).save(other)
    stored = correct(service)
    assert service.client.delete(f"/corrections/{stored['id']}").status_code == 204
    assert files(labelled) == [f"{OTHER}/somebody-else.png"]
    for id in (stored["id"], "somebody-else", "..", "../../models/production", "%2e%2e%2fproduction"):
        assert service.client.delete(f"/corrections/{id}").status_code in (404, 405, 422)
    assert files(labelled) == [f"{OTHER}/somebody-else.png"]


def test_what_waits_is_what_came_after_the_last_training_began(service, store, good, monkeypatch):
    monkeypatch.setattr(corrections, "COUNT_AGAIN_SECONDS", 0.2)
    assert service.client.get("/corrections").json() == {"enabled": True, "waiting": 0}
    assert correct(service)["waiting"] == 1
    assert correct(service, TEST.images[1].tolist(), OTHER)["waiting"] == 2
    time.sleep(sum(epoch.seconds for epoch in good.history) + 0.1)  # as long as the next training says it took
    save(store, good, GOOD)
    wait_until(lambda: service.client.get("/corrections").json()["waiting"] == 0, "them to be counted again")
    assert correct(service, TEST.images[2].tolist(), OTHER)["waiting"] == 1


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"image": ARRAY}, (422, "bad_correction", "label: Field required")),
        (
            {"image": ARRAY, "label": SPEC.classes},
            (422, "bad_correction", "label: Input should be less than "),
        ),
        ({"image": ARRAY, "label": str(LABEL)}, (422, "bad_correction", "label: Input should be a valid integer")),
        ({"image": ARRAY, "label": LABEL, "who": "me"}, (422, "bad_correction", "who: Extra inputs are not permitted")),
        ({"image": BLANK, "label": LABEL}, (422, "bad_image", "blank")),
        ({"image": BLANK[1:], "label": LABEL}, (422, "bad_array", "another shape")),
        ([], (400, "bad_json", "must be a JSON object")),
    ],
)
def test_bad_corrections_are_refused_with_a_sentence(service, labelled, body, expected):
    status, code, message = error(service.client.post("/corrections", json=body))
    assert (status, code) == expected[:2]
    assert expected[2] in message
    assert not labelled.exists()


def test_a_correction_is_json(service, labelled):
    body = json.dumps({"image": ARRAY, "label": LABEL})
    answer = service.client.post("/corrections", content=body, headers={"Content-Type": "text/plain"})
    assert error(answer)[:2] == (415, "unsupported_media_type")
    assert not labelled.exists()


def test_size_and_rate_are_limited(store, deployed, labelled):
    with Service(store, labelled, corrections_per_minute=2, max_body_mib=0.01) as service:
        json_type = {"Content-Type": "application/json"}
        too_large = service.client.post("/corrections", content=b" " * 20_000, headers=json_type)
        assert error(too_large)[:2] == (413, "too_large")
        for image in TEST.images[:2]:
            correct(service, image.tolist())
        refused = service.client.post("/corrections", json={"image": TEST.images[2].tolist(), "label": LABEL})
        assert error(refused)[:2] == (429, "too_many_corrections")
        assert 1 <= int(refused.headers["Retry-After"]) <= 61
        assert correct(service)["status"] == 200  # it is stored already
        assert len(files(labelled)) == 2


def test_a_folder_that_cannot_be_written_is_said_and_nothing_else_stops(service, labelled):
    labelled.write_text("a file where a folder should be")
    answer = service.client.post("/corrections", json={"image": ARRAY, "label": LABEL})
    assert error(answer)[:2] == (503, "storage_failed")
    assert service.client.post("/predict", json={"image": ARRAY}).status_code == 200
    labelled.unlink()
    assert correct(service)["status"] == 201


def test_what_was_labelled_long_ago_is_looked_through_once(store, deployed, labelled, monkeypatch):
    for label in range(SPEC.classes):
        (folder := labelled / str(label)).mkdir(parents=True)
        for number in range(20):
            (folder / f"{number}.png").write_bytes(b"")
    walks: list[UPath] = []
    walk = corrections.walk

    def counted(root: UPath) -> Walk:
        walks.append(root)
        return walk(root)

    monkeypatch.setattr(corrections, "walk", counted)
    with Service(store, labelled) as service:
        for position, image in enumerate(TEST.images[:5]):
            waiting = correct(service, image.tolist(), LABEL)["waiting"]
            assert waiting == service.client.get("/corrections").json()["waiting"] == 20 * SPEC.classes + position + 1
    assert len(walks) == 1


def test_a_queue_that_cannot_be_stored_stops_no_correction(store, deployed, labelled):
    review = labelled.parent / "review"
    review.write_text("a file where a folder should be")
    with Service(store, labelled, confidence_threshold=1) as service:
        service.client.post("/predict", json={"image": ARRAY})
        assert correct(service)["status"] == 201
        assert error(service.client.get("/review/items"))[:2] == (503, "storage_failed")
        review.unlink()
        other = TEST.images[1].tolist()
        service.client.post("/predict", json={"image": other})
        items = service.client.get("/review/items").json()
        assert other in [item["image"] for item in items]
        assert len(items) == 2  # what could not be stored was not lost


def test_a_damaged_version_does_not_stop_corrections(service, store, deployed):
    newest = Path(store.base_path) / deployed.replace("_2", "_3", 1) / "manifest.json"
    newest.parent.mkdir()
    newest.write_text("{")
    assert correct(service)["waiting"] == 1


def test_feedback_can_be_switched_off(store, deployed):
    with Service(store, None, confidence_threshold=1) as service:
        assert service.client.get("/corrections").json() == {"enabled": False, "waiting": 0}
        answer = service.client.post("/corrections", json={"image": ARRAY, "label": LABEL})
        assert error(answer)[:2] == (403, "feedback_off")
        assert error(service.client.delete(f"/corrections/{'0' * 32}"))[:2] == (403, "feedback_off")
        service.client.post("/predict", json={"image": ARRAY})
        assert service.client.get("/review/items").json() == []


def test_unsure_predictions_are_kept_for_review_each_once_least_sure_first(store, deployed, labelled):
    images = embedded_images().test.images[:20].tolist()
    with Service(store, labelled, confidence_threshold=1, review_items=15) as service:
        service.client.post("/predict?review=false", json={"images": images})
        assert service.client.get("/review/items").json() == []
        for _ in range(2):
            predicted = service.client.post("/predict", json={"images": images}).json()["predictions"]
        items = service.client.get("/review/items").json()
        unsure = [image for image, prediction in zip(images, predicted, strict=True) if prediction["needs_review"]]
        assert len(items) == 15 <= len(unsure)
        assert all(item["image"] in unsure[-15:] for item in items)
        assert [item["confidence"] for item in items] == sorted(item["confidence"] for item in items)

        stored = correct(service, items[0]["image"], OTHER, confirmed=True)
        assert stored["id"] == items[0]["id"]
        left = service.client.get("/review/items").json()
        assert left == items[1:]
        service.client.post("/predict", json={"image": items[0]["image"]})
        assert service.client.get("/review/items").json() == left  # labelled once is enough
        service.client.delete(f"/corrections/{stored['id']}")
        assert service.client.get("/review/items").json() == items


def test_corrections_go_to_a_bucket_too(store, deployed, s3_bucket, s3_url):
    root = storage_path(f"s3://{s3_bucket}/labelled", s3_url)
    with Service(store, root) as service:
        stored = correct(service)
        assert stored["waiting"] == 1
        assert listed(s3_bucket, s3_url) == [
            f"labelled/{LABEL}/{stored['id']}.png",
            f"review/labelled/{stored['id']}.json",
        ]
        assert correct(service)["status"] == 200
        assert read_labelled(root, SPEC).images.labels.tolist() == [LABEL]
        service.client.delete(f"/corrections/{stored['id']}")
        assert listed(s3_bucket, s3_url) == []


def listed(bucket: str, url: str) -> list[str]:
    found = boto3.client("s3", endpoint_url=url).list_objects_v2(Bucket=bucket).get("Contents", [])
    return [entry["Key"] for entry in found]
