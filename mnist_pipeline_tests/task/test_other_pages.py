"""The pages for photos and for many classes: nothing to draw on, names in place of numbers."""

from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from mnist_pipeline_tests.live import wait_until
from mnist_pipeline_tests.serve.service import Service
from mnist_pipeline_tests.serve.test_feedback import files
from mnist_pipeline_tests.task.drawing import encode
from mnist_pipeline_tests.task.others import photo
from mnist_pipeline_tests.task.test_other_tasks import Task, colours, letters, pipeline_of
from mnist_pipeline_tests.task.test_page import SIZES, Visit

STEPS = (
    "raw_mnist_data",
    "processed_mnist_data",
    "digit_classifier",
    "model_evaluation",
    "production_digit_classifier",
)


def deployed(task: Task, folder: Path, instance: dg.DagsterInstance):
    """The store with a model of a task."""
    pipeline = pipeline_of(task, folder, instance)
    pipeline.run(*STEPS, digit_classifier=task.settings, production_digit_classifier={"accuracy_threshold": 0.5})
    return pipeline.store


@pytest.mark.parametrize("size", SIZES)
def test_photos_are_opened_pasted_and_corrected_by_name(tmp_path, instance, browser, size):
    task, labelled = colours(tmp_path / "data"), tmp_path / "labelled"
    file = tmp_path / "upload.png"
    file.write_bytes(encode(task.picture))
    store = deployed(task, tmp_path, instance)
    with (
        Service(store, labelled, confidence_threshold=1) as service,
        Visit(browser, service.url, **SIZES[size]) as visit,
    ):
        visit.wait_for("#how-to-show", "Drop or paste an image here")
        assert visit.page.locator("#how-to-draw").is_hidden()
        blank = visit.drawn()
        visit.page.locator("#pad").click()
        visit.page.keyboard.press("Space")  # nothing can be drawn
        assert visit.drawn() == blank
        visit.page.locator("#file").set_input_files(file)
        visit.wait_for("#label", "box")
        visit.wait_for("#status", " box (")
        assert visit.page.locator(".camera").is_visible() == (size == "phone")
        visit.page.get_by_role("button", name="It is Red ball").click()
        visit.wait_for("#stored", "Thank you: stored as Red ball.")
        assert [path.split("/")[0] for path in files(labelled)] == ["red_ball"]
        visit.page.get_by_role("button", name="Clear").click()
        visit.wait_for("#label", "?")
        paste = """bytes => {
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([new Uint8Array(bytes)], "x.png", { type: "image/png" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData }));
        }"""
        visit.page.evaluate(paste, list(encode(photo(0, np.random.default_rng(3), (90, 70)))))
        visit.wait_for("#label", "Red ball")
        wide = visit.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        assert not wide
        assert visit.problems == []
        service.client.post("/predict", json={"images": unclear()})
        with Visit(browser, f"{service.url}/review", **SIZES[size]) as review:
            review.wait_for("#guess", "Somebody says it is Red ball, the model says ")
            review.page.get_by_role("button", name="It is cross").click()
            review.wait_for("#stored", "Stored as cross.")
            assert review.problems == []


def unclear() -> list[Any]:
    """Images of nothing, of which the model is not sure in all."""
    chance, shape = np.random.default_rng(0), (48, 40, 3)
    even = [np.full(shape, chance.integers(0, 256, 3)) for _ in range(30)]
    return [image.tolist() for image in even]


def test_of_many_classes_the_likeliest_have_bars_and_all_are_in_a_list(tmp_path, instance, browser):
    task, labelled = letters(tmp_path / "data"), tmp_path / "labelled"
    file = tmp_path / "upload.png"
    file.write_bytes(encode(task.picture))
    store = deployed(task, tmp_path, instance)
    with Service(store, labelled) as service, Visit(browser, service.url) as visit:
        visit.wait_for("#how-to-draw", "Draw with mouse")
        visit.page.locator("#file").set_input_files(file)
        visit.wait_for("#label", "z")
        assert visit.page.locator("#bars li").count() == 10
        assert visit.text("#bars li:first-child span:first-child") == "z"
        visit.page.get_by_label("The right class").select_option("q")
        visit.wait_for("#stored", "stored as a q.")
        wait_until(lambda: [path.split("/")[0] for path in files(labelled)] == ["q"], "the correction")
        assert visit.problems == []
