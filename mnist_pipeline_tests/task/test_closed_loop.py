"""From a wrong answer on the page to a better model behind it, with real processes and nobody at the console.

The first model comes of a short training. What follows is by automation: the page's corrections are noticed, a
candidate is trained with the default settings, evaluated, promoted, and served. `pytest -s` prints the figures.
"""

import random
from typing import Any

import httpx
import numpy as np
import pytest

from mnist_pipeline.ml.data import split
from mnist_pipeline.ml.manifest import Decision
from mnist_pipeline.ml.model import model_from_bytes, predict_logits
from mnist_pipeline.ml.settings import SplitSettings, TrainingSettings
from mnist_pipeline.ml.training import train
from mnist_pipeline.stores import LocalModelStore
from mnist_pipeline.task.dataset import no_images
from mnist_pipeline.task.known.mnist import MNIST
from mnist_pipeline_tests.live import Deployment
from mnist_pipeline_tests.serve.service import process
from mnist_pipeline_tests.task.drawing import crossed_seven, draw
from mnist_pipeline_tests.task.examples import small_dataset, variables_of, write_files
from mnist_pipeline_tests.task.test_page import Visit

pytestmark = [pytest.mark.live, pytest.mark.extended]

HELD_OUT = 20
CORRECTIONS = 60
"""In a round; most often one round is enough."""

ROUNDS = 3
FIRST = {
    "digit_classifier": {"config": {"epochs": 5}},
    "production_digit_classifier": {"config": {"accuracy_threshold": 0.5}},
}


def predicted(visit: Visit, chance: random.Random) -> tuple[str, np.ndarray]:
    """Draw one more of them: what the page says, and the picture that the model saw."""
    visit.page.get_by_role("button", name="Clear").click(force=True)
    draw(visit.page, crossed_seven(chance))
    visit.page.locator("#prediction[aria-busy=false]").wait_for()
    return visit.text("#label"), visit.pixels("#prepared")[..., 0]


def correct_some(visit: Visit, chance: random.Random) -> None:
    for _ in range(CORRECTIONS):
        predicted(visit, chance)
        visit.page.get_by_role("button", name="It is a 7").click()
        visit.wait_for("#stored", "a 7.")


def confirm_what_waits(browser: Any, url: str) -> int:
    """Look at the labels that were held back, on the page, and return how many these were."""
    with Visit(browser, f"{url}/review") as visit:
        visit.wait_for("#guess", "to go")
        waiting = 0
        while visit.page.locator("#group").is_visible():
            waiting += visit.page.locator("#waiting-images li").count()
            visit.page.locator("#confirm").click()
            visit.wait_for("#stored", "confirmed")
            visit.page.evaluate("document.querySelector('#stored').textContent = ''")
        return waiting


def production(store: LocalModelStore) -> Decision:
    decision = store.production()
    assert decision
    return decision


def test_corrections_make_the_next_model_right(tmp_path, browser):
    dataset = small_dataset(200, 100)
    raw = tmp_path / "raw"
    raw.mkdir()
    write_files(raw, dataset)
    deployment = Deployment(tmp_path / "deployment", settings={}, **variables_of(raw))
    deployment.launch("job", "full_pipeline_job", FIRST)
    storage = deployment.variables["STORAGE_ROOT"]
    store = LocalModelStore(base_path=f"{storage}/models")
    first = deployed = production(store)
    deployment.start()
    try:
        with process(STORAGE_ROOT=storage) as (url, _, _), Visit(browser, url) as visit:

            def answer(path: str) -> dict[str, Any]:
                return httpx.get(f"{url}{path}", timeout=30).json()

            drawn = [predicted(visit, random.Random(number)) for number in range(HELD_OUT)]
            before = sum(label == "7" for label, _ in drawn) / HELD_OUT
            chance, after, held = random.Random(HELD_OUT), 0.0, 0
            for _ in range(ROUNDS):
                correct_some(visit, chance)
                held += confirm_what_waits(browser, url)
                deployment.wait_for(lambda: answer("/corrections")["waiting"] == 0, "a training with them", 300)
                deployment.settle()
                deployed = production(store)
                deployment.wait_for(lambda: answer("/model")["model"] == production(store).version, "it to be served")
                again = [predicted(visit, random.Random(number)) for number in range(HELD_OUT)]
                assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(drawn, again, strict=True))
                after = sum(label == "7" for label, _ in again) / HELD_OUT
                if after >= 0.9:
                    break
    finally:
        deployment.stop()

    # The same training without the corrections: it is they that made the difference.
    splits = split(dataset, no_images(MNIST), SplitSettings())
    control = train(TrainingSettings(), splits)
    model = model_from_bytes(control.weights, TrainingSettings(), MNIST)
    images = np.stack([image for _, image in drawn])
    without = float((predict_logits(model, images, MNIST).argmax(1) == 7).float().mean())
    print(f"{held} labels were held back, and confirmed on the page")
    print(f"crossed sevens: {before:.2f} before, {after:.2f} after, {without:.2f} after a training without corrections")
    labels = predict_logits(model, dataset.test.images, MNIST).argmax(1).numpy()
    unaided = float((labels == dataset.test.labels).mean())
    print(f"test digits: {first.test_accuracy:.4f}, {deployed.test_accuracy:.4f} and {unaided:.4f}")
    assert before <= 0.5
    assert without <= 0.5
    assert after >= 0.9
    assert deployed.strategy == "quality"
    assert deployed.test_accuracy is not None and first.test_accuracy is not None
    assert deployed.test_accuracy >= first.test_accuracy
    assert deployed.test_accuracy >= unaided - 0.01  # a sampling error of 1,000 images is 0.005
    joined = deployment.built("processed_mnist_data")[-1]["labelled_digits_joined"]
    held_out = deployment.built("processed_mnist_data")[-1]["labelled_digits_held_out"]
    assert (joined + held_out) % CORRECTIONS == 0 and joined >= CORRECTIONS / 2
    # What never trained shows that the others helped, and the reason for the promotion says so.
    helped = next(entry for entry in store.decisions() if isinstance(entry, Decision) and entry.slices)
    [comparison] = helped.slices
    print(helped.reason)
    assert (helped.outcome, comparison.slice) == ("promoted", "held-out labels")
    assert comparison.regression_high < 0  # a gain, and so is its interval
    assert f"fixes {comparison.fixed} and breaks {comparison.broken} of {comparison.images}" in helped.reason
    assert "a change by +" in helped.reason  # the interval
