"""What steps send to the people who look at images, and what they do when these have looked."""

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from upath import UPath

from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.ml.review import ReviewQueue
from mnist_pipeline.ml.review_items import Doubt, ReviewItem, contradictions, image_id
from mnist_pipeline.task.dataset import LabelledImages
from mnist_pipeline_tests.conftest import Pipeline, check_results, metadata
from mnist_pipeline_tests.task.examples import GOOD, SPEC, embedded_images, png

DATA, CANDIDATE, BATCH = "processed_mnist_data", "digit_classifier", "batch_digit_predictions"
STEPS = (DATA, CANDIDATE, "model_evaluation", "production_digit_classifier")
SAID, GIVEN = 4, 9


def queue(pipeline: Pipeline) -> ReviewQueue:
    return ReviewQueue(UPath(pipeline.environment.place("review_dir", "review")), 1000)


def items(pipeline: Pipeline, reason: str) -> list[ReviewItem]:
    return [item for item in queue(pipeline).items(SPEC.array_shape) if item.reason == reason]


def label(pipeline: Pipeline, images: np.ndarray, called: int) -> list[str]:
    """Drop images in the folder of a class; return their ids."""
    folder = Path(pipeline.environment.place("labelled_dir", "labelled")) / SPEC.class_folders[called]
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        (folder / f"{image_id(image)}.png").write_bytes(png(image))
    return [image_id(image) for image in images]


@pytest.fixture
def others() -> np.ndarray:
    """Images of one class that are not in the data set of the tests."""
    train = embedded_images().train
    return train.images[train.labels == SAID][-40:]


@pytest.fixture
def deployed(pipeline) -> Pipeline:
    pipeline.run("raw_mnist_data", *STEPS, digit_classifier=GOOD)
    return pipeline


def test_labels_that_contradict_the_deployed_model_train_and_are_to_be_looked_at(deployed, others):
    ids = label(deployed, others[:6], GIVEN)
    right = label(deployed, others[6:12], SAID)
    result = deployed.run(DATA)
    told = metadata(result, DATA)
    assert told["labelled_digits_joined"] + told["labelled_digits_held_out"] == 12
    found = items(deployed, "contradiction")
    assert told["labels_contradicting_the_model"] == told["sent_to_review"] == len(found) >= 4
    wrong = [item for item in found if item.id in ids]
    assert len(wrong) >= 4
    assert {(item.given, item.given_name) for item in wrong} == {(GIVEN, SPEC.class_names[GIVEN])}
    assert sum(item.id in right for item in found) <= 2  # of the right labels the model knows most
    assert np.array_equal(wrong[0].image, others[ids.index(wrong[0].id)])
    # What people have looked at is not asked again, nor what is asked already.
    queue(deployed).label([wrong[0].id], decided=True)
    assert metadata(deployed.run(DATA), DATA)["sent_to_review"] == 0
    assert wrong[0].id not in [item.id for item in items(deployed, "contradiction")]


def test_an_image_that_was_doubtful_is_shown_for_its_label(deployed, others):
    label(deployed, others[:1], GIVEN)
    queue(deployed).add(Doubt(others[0], "unsure", SAID, 0.4), SPEC, "a model")
    queue(deployed).write()
    deployed.run(DATA)
    assert [item.id for item in items(deployed, "contradiction")] == [image_id(others[0])]


def test_doubtful_answers_push_out_no_doubtful_label(deployed, others):
    label(deployed, others[:3], GIVEN)
    deployed.run(DATA)
    before = items(deployed, "contradiction")
    small = ReviewQueue(UPath(deployed.environment.place("review_dir", "review")), 2)
    for image in embedded_images().test.images[:9]:
        small.add(Doubt(image, "unsure", 0, 0.4), SPEC, "a model")
    small.write()
    assert len(items(deployed, "unsure")) == 2
    assert len(before) == 3 and len(items(deployed, "contradiction")) == 2  # so many are kept of these, too


def test_a_class_that_the_model_does_not_know_is_no_contradiction(deployed, others, small_dataset):
    more = SPEC.model_copy(update={"class_names": ("first", *SPEC.class_names)})
    predictor = Predictor.from_store(deployed.store)
    said = predictor.predict(others).argmax(1)
    as_they_are = LabelledImages(others, (said + 1).astype(np.uint8))
    assert contradictions(predictor, as_they_are, more)[0] == 0
    new = LabelledImages(others, np.zeros(len(others), np.uint8))
    assert contradictions(predictor, new, more)[0] == 0
    count, found = contradictions(predictor, LabelledImages(others, (said + 2).astype(np.uint8) % 11), more)
    assert {item.given_name for item in found} <= set(SPEC.class_names)
    assert count > 0


def test_a_deployed_model_that_is_damaged_stops_no_data(deployed, others):
    label(deployed, others[:3], GIVEN)
    key = f"{deployed.store.production().version}/model.onnx"
    data, token = deployed.store.read_object(key)
    deployed.store.replace_object(key, data[:-1] + bytes([data[-1] ^ 1]), token)
    told = metadata(deployed.run(DATA), DATA)
    assert "model.onnx" in told["labels_not_compared"]
    assert told["labelled_digits_joined"] + told["labelled_digits_held_out"] == 3


def test_the_last_label_of_an_image_counts_whatever_its_file_is_called(deployed, others):
    folder = Path(deployed.environment.place("labelled_dir", "labelled"))
    for number, (name, called) in enumerate([("a.png", GIVEN), ("z.png", SAID), ("b.png", GIVEN)]):
        place = folder / SPEC.class_folders[called]
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(png(others[0]))
        os.utime(place / name, (1_000_000 + number % 2, 1_000_000 + number % 2))
    result = deployed.run(DATA)
    after, told = result.output_for_node(DATA), metadata(result, DATA)
    assert (after.train if told["labelled_digits_joined"] else after.held_out).labels[-1] == SAID
    assert told["labelled_digits_joined"] + told["labelled_digits_held_out"] == 1
    reasons = {row.data["file"]: row.data["reason"] for row in told["skipped_files"].records}
    assert set(reasons) == {f"{SPEC.class_folders[GIVEN]}/{name}" for name in ("a.png", "b.png")}
    assert all("is a newer label of the same image" in reason for reason in reasons.values())


def test_a_look_at_labels_that_fails_saves_no_second_version(pipeline, monkeypatch):
    pipeline.run("raw_mnist_data", DATA)
    tried: list[int] = []

    def fail(*_: object) -> list[object]:
        tried.append(1)
        if len(tried) == 1:
            raise OSError("no room")
        return []

    monkeypatch.setattr("mnist_pipeline.ml.improbable.improbable_labels", fail)
    assert pipeline.run(CANDIDATE).success
    assert (len(tried), len(pipeline.store.versions())) == (2, 1)


def test_without_a_deployed_model_nothing_is_contradicted(pipeline, others):
    label(pipeline, others[:6], GIVEN)
    told = metadata(pipeline.run("raw_mnist_data", DATA), DATA)
    assert "labels_contradicting_the_model" not in told
    assert queue(pipeline).items(SPEC.array_shape) == []


def test_labels_that_a_candidate_finds_improbable_are_to_be_looked_at(pipeline, others):
    ids = label(pipeline, others, GIVEN)
    result = pipeline.run("raw_mnist_data", DATA, CANDIDATE, digit_classifier={**GOOD, "epochs": 8})
    told, found = metadata(result, CANDIDATE), items(pipeline, "improbable")
    assert told["improbable_labels"] >= told["sent_to_review"] == len(found) > 0
    wrong = [item for item in found if item.id in ids]
    assert len(wrong) >= 3
    assert {(item.label, item.given) for item in wrong} == {(SAID, GIVEN)}
    assert {item.model for item in wrong} == {result.output_for_node(CANDIDATE).name}
    first = told["improbable_kinds"].records[0].data
    assert (first["label"], first["expected"]) == (SPEC.class_names[GIVEN], SPEC.class_names[SAID])
    assert "data:image/webp;base64," in told["improbable_images"]


def test_a_label_for_a_raw_image_corrects_it_and_moves_no_other(pipeline, small_dataset):
    before = pipeline.run("raw_mnist_data", DATA).output_for_node(DATA)
    images = [before.train.images[0], before.validation.images[0]]
    old = [int(before.train.labels[0]), int(before.validation.labels[0])]
    new = [(one + 1) % SPEC.classes for one in old]
    for image, one in zip(images, new, strict=True):
        label(pipeline, image[None], one)
    result = pipeline.run(DATA)
    after, told = result.output_for_node(DATA), metadata(result, DATA)
    assert (told["labelled_digits_joined"], told["labelled_digits_relabelled"]) == (0, 2)
    assert told["labelled_digits_held_out"] == 0
    for name in ("train", "validation"):
        assert np.array_equal(getattr(after, name).images, getattr(before, name).images)
        assert (getattr(after, name).labels != getattr(before, name).labels).sum() == 1
    assert [int(after.train.labels[0]), int(after.validation.labels[0])] == new
    checks = check_results(result)
    assert checks["nothing_lost"] and checks["no_leakage"]


def test_a_batch_sends_its_least_sure_and_its_strangest_images(deployed, tmp_path, small_dataset):
    chance = np.random.default_rng(0)
    noise = chance.integers(0, 256, (6, *SPEC.array_shape), np.uint8)
    np.save(tmp_path / "in.npy", np.concatenate([small_dataset.test.images, noise]))
    settings = {"input_paths": [str(tmp_path / "in.npy")], "batch_size": 64, "confidence_threshold": 0.99}
    result = deployed.run(BATCH, batch_digit_predictions={**settings, "review_images": 4})
    unsure, unlike = items(deployed, "unsure"), items(deployed, "unlike")
    assert (len(unsure), len(unlike)) == (4, 4)
    assert metadata(result, BATCH)["sent_to_review"] == 8
    assert {item.id for item in unlike} <= {image_id(image) for image in noise}
    table = Path(result.output_for_node(BATCH).path)
    rows = pq.read_table(table).to_pylist()
    confidences = sorted(row["confidence"] for row in rows if not row["unlike_training_data"])
    assert sorted(item.confidence for item in unsure) == pytest.approx(confidences[:4])


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"review_images": 0}, 0), ({"confidence_threshold": 0.0}, 0), ({"confidence_threshold": 1.0}, 5)],
)
def test_what_is_doubtful_follows_the_settings(deployed, tmp_path, small_dataset, change, expected):
    np.save(tmp_path / "in.npy", small_dataset.test.images[:5])
    settings = {"input_paths": [str(tmp_path / "in.npy")], "confidence_threshold": 1.0}
    deployed.run(BATCH, batch_digit_predictions=settings | change)
    assert len(items(deployed, "unsure") + items(deployed, "unlike")) == expected


def test_test_images_are_not_asked_about(deployed):
    result = deployed.run(BATCH, batch_digit_predictions={"confidence_threshold": 1.0})
    assert "sent_to_review" not in metadata(result, BATCH)
    assert items(deployed, "unsure") + items(deployed, "unlike") == []


def test_a_place_that_cannot_be_written_fails_no_step(deployed, others, tmp_path):
    place = Path(deployed.environment.place("review_dir", "review"))
    shutil.rmtree(place, ignore_errors=True)
    place.write_text("a file where a folder should be")
    label(deployed, others[:6], GIVEN)
    np.save(tmp_path / "in.npy", others)
    result = deployed.run(
        DATA, BATCH, batch_digit_predictions={"input_paths": [str(tmp_path / "in.npy")], "confidence_threshold": 1.0}
    )
    assert result.success
    for step in (DATA, BATCH):
        assert "review" in metadata(result, step)["not_sent_to_review"]


def test_labels_that_wait_are_counted_on_the_page_of_the_data(deployed, others):
    assert metadata(deployed.run(DATA), DATA)["labels_held_back"] == 0
    for image in others[:3]:
        given = {"given": GIVEN, "given_name": SPEC.class_names[GIVEN], "source": "0123"}
        item = Doubt(image, "held", SAID, 0.9).item(SPEC, "a model", **given)
        assert not queue(deployed).admit(item, hold_all=True)
    result = deployed.run(DATA)
    assert metadata(result, DATA)["labels_held_back"] == 3
    assert metadata(result, DATA)["labelled_digits_joined"] == 0
