"""The page on which people look at images, in a real Chromium: with keys and fingers, in every size and theme."""

import numpy as np
import pytest

from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline_tests.live import wait_until
from mnist_pipeline_tests.serve.service import Service
from mnist_pipeline_tests.serve.test_feedback import correct, files
from mnist_pipeline_tests.serve.test_predict import TEST
from mnist_pipeline_tests.task.drawing import ONE, draw
from mnist_pipeline_tests.task.test_page import SIZES, Visit


def test_review_with_keys(store, deployed, labelled, browser):
    images = TEST.images[:3].tolist()
    with Service(store, labelled, confidence_threshold=1) as service:
        service.client.post("/predict", json={"images": images})
        items = service.client.get("/review/items").json()
        with Visit(browser, f"{service.url}/review", **SIZES["dark"]) as visit:
            visit.wait_for("#guess", f"The model says a {items[0]['label']}, ")
            assert f"{len(items)} to go" in visit.text("#guess")
            assert np.array_equal(visit.pixels("#image")[..., 0], items[0]["image"])
            visit.page.keyboard.press("3")
            visit.wait_for("#stored", "Stored as a 3.")
            assert files(labelled) == [f"3/{items[0]['id']}.png"]
            visit.page.keyboard.press("u")
            visit.wait_for("#stored", "Taken back.")
            assert files(labelled) == []
            visit.wait_for("#guess", f"{len(items)} to go")
            visit.page.keyboard.press("s")
            visit.wait_for("#stored", "Skipped.")
            for key in "45"[: len(items) - 1]:
                visit.page.keyboard.press(key)
                visit.wait_for("#stored", f"Stored as a {key}.")
            visit.wait_for("#guess", "Nothing to review")
            wait_until(lambda: len(files(labelled)) == len(items) - 1, "the labels")
            assert visit.problems == []


@pytest.mark.parametrize("size", SIZES)
def test_labels_that_wait_are_looked_at_together_or_one_by_one(store, deployed, labelled, browser, size):
    images, predictor = TEST.images, Predictor.from_store(store)
    fours = images[predictor.predict(images).argmax(1) == 4][:27].tolist()
    with Service(store, labelled) as service:
        for four in fours:
            correct(service, four, 9)
        with Visit(browser, f"{service.url}/review", **SIZES[size]) as visit:
            visit.wait_for("#guess", "Somebody says it is a 9, the model says a 4 (")
            visit.wait_for("#guess", "This label is not used for training until somebody confirms it. 27 to go.")
            visit.wait_for("#alike", "One sender labelled these 7 pictures as a 9.")
            assert visit.page.locator("#waiting-images canvas").count() == 7
            wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
            assert not visit.page.evaluate(wide)
            visit.page.keyboard.press("4")
            visit.wait_for("#stored", "Stored as a 4.")
            visit.page.get_by_role("button", name="All 6 are a 9").click()
            visit.wait_for("#stored", "6 labels confirmed.")
            assert visit.page.locator("#group").is_hidden()
            visit.wait_for("#guess", "Somebody says it is a 9, the model says a 4 (")
            visit.wait_for("#guess", "unless you correct it. 20 to go.")
            assert sorted(name[0] for name in files(labelled)) == ["4"] + ["9"] * 26
            for four in images[predictor.predict(images).argmax(1) == 4][27:30].tolist():
                correct(service, four, 9)
            visit.page.reload()
            visit.wait_for("#alike", "One sender labelled these 3 pictures as a 9.")
            visit.page.get_by_role("button", name="Forget these labels").click()
            visit.wait_for("#stored", "3 labels forgotten.")
            assert len(files(labelled)) == 27
            assert visit.problems == []


def test_a_label_that_waits_is_thanked_for_and_can_be_taken_back(store, deployed, labelled, browser):
    with (
        Service(store, labelled, second_opinion=True) as service,
        Visit(browser, service.url) as visit,
    ):
        draw(visit.page, ONE)
        visit.wait_for("#label", "1")
        visit.page.get_by_role("button", name="It is a 7").click()
        visit.wait_for("#stored", "Thank you: it waits until somebody confirms that it is a 7.")
        visit.page.get_by_role("button", name="Take it back").click()
        visit.wait_for("#stored", "Taken back.")
        assert service.client.get("/review/items").json() == []


def test_nothing_to_review_and_switched_off(store, deployed, browser):
    with Service(store) as service, Visit(browser, f"{service.url}/review") as visit:
        visit.wait_for("#guess", "Nothing to review")
        visit.wait_for("#waiting", "switched off")


def test_what_is_undone_is_as_it_was(service, labelled, browser):
    four = TEST.images[TEST.labels == 4][0].tolist()
    stored = correct(service, four, 9)
    with Visit(browser, f"{service.url}/review") as visit:
        visit.wait_for("#guess", "Somebody says it is a 9, the model says a 4 (")
        visit.page.keyboard.press("4")
        visit.wait_for("#stored", "Stored as a 4.")
        assert files(labelled) == [f"4/{stored['id']}.png"]
        visit.page.keyboard.press("u")
        visit.wait_for("#stored", "Taken back.")
        assert files(labelled) == [f"9/{stored['id']}.png"]  # the label that somebody had given
        visit.wait_for("#guess", "Somebody says it is a 9")
        visit.page.reload()
        visit.wait_for("#guess", "Somebody says it is a 9, the model says a 4 (")
        visit.wait_for("#guess", "This label is used for training unless you correct it.")
        assert visit.problems == []


def test_what_waited_waits_again_when_a_decision_is_undone(store, deployed, labelled, browser):
    four = TEST.images[TEST.labels == 4][0].tolist()
    with Service(store, labelled, second_opinion=True) as service:
        correct(service, four, 9)
        with Visit(browser, f"{service.url}/review") as visit:
            visit.wait_for("#guess", "Somebody says it is a 9")
            visit.page.keyboard.press("4")
            visit.wait_for("#stored", "Stored as a 4.")
            visit.page.keyboard.press("u")
            visit.wait_for("#stored", "Taken back.")
            assert files(labelled) == []
            visit.page.reload()
            visit.wait_for("#alike", "One sender labelled this picture as a 9.")
            visit.page.get_by_role("button", name="Forget this label").click()
            visit.wait_for("#stored", "1 label forgotten.")
            visit.wait_for("#guess", "Nothing to review")


def test_what_is_of_no_class_is_said_to_be(store, deployed, labelled, browser):
    with Service(store, labelled, confidence_threshold=1) as service:
        service.client.post("/predict", json={"image": TEST.images[0].tolist()})
        with Visit(browser, f"{service.url}/review") as visit:
            visit.wait_for("#guess", "1 to go")
            visit.page.keyboard.press("n")
            visit.wait_for("#stored", "It is shown no more.")
            visit.page.reload()
            visit.wait_for("#guess", "Nothing to review")
            assert visit.problems == []


def test_where_nobody_looks_the_page_says_so(store, deployed, labelled, browser):
    with Service(store, labelled, review=False) as service, Visit(browser, f"{service.url}/review") as visit:
        visit.wait_for("#guess", "Nobody looks at images on this service (--review off).")
