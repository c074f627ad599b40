"""Models that pass on accuracy and are refused by their slice, on real digits."""

from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from mnist_pipeline.defs.assets.production_digit_classifier import LISTED_SLICES
from mnist_pipeline.environment import Environment
from mnist_pipeline.ml.gate import P_WORSE
from mnist_pipeline.task.corruptions import corrupted
from mnist_pipeline.task.known.mnist import MNIST
from mnist_pipeline.task.statistics import stroke_statistics
from mnist_pipeline_tests.conftest import Pipeline, check_results, metadata
from mnist_pipeline_tests.task.examples import GOOD, embedded_images, png

STEPS = ("processed_mnist_data", "digit_classifier", "model_evaluation", "production_digit_classifier")
GATE = "production_digit_classifier"
LOW = {"accuracy_threshold": 0.8}


@pytest.fixture
def sample(tmp_path, instance) -> Pipeline:
    """A deployment with the whole sample, in which nothing was run."""
    variables = {"STORAGE_ROOT": str(tmp_path / "storage"), "DATASET_SOURCE": "sample"}
    return Pipeline(Environment.read(variables), instance)


def label(pipeline: Pipeline, images: np.ndarray, called: int) -> None:
    folder = Path(pipeline.environment.place("labelled_dir", "labelled")) / str(called)
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        (folder / f"{number}.png").write_bytes(png(image))


def with_a_dot(images: np.ndarray, grey: int) -> np.ndarray:
    """The same with another pixel in the corner."""
    found = images.copy()
    found[:, 0, 0] = grey
    return found


def deploy(pipeline: Pipeline, *first: str, **training) -> dg.ExecuteInProcessResult:
    return pipeline.run(*first, *STEPS, digit_classifier=GOOD | training, production_digit_classifier=LOW)


def refused(pipeline: Pipeline, result: dg.ExecuteInProcessResult) -> list[str]:
    """The slices for which the last candidate was refused, which passed on accuracy."""
    decision = pipeline.store.decisions()[0]
    assert decision.outcome == "refused"
    [comparison] = decision.comparisons
    assert decision.test_accuracy >= LOW["accuracy_threshold"]
    assert comparison.p_worse > P_WORSE
    assert "nothing shows that it is worse" in decision.reason
    assert pipeline.store.production().version == decision.incumbent_version
    lost = [one.slice for one in decision.slices if one.slice != "held-out labels"]
    assert all(f"{name}: " in decision.reason for name in lost)
    shown = {row.data["slice"]: row.data for row in metadata(result, GATE)["slices"].records}
    assert len(shown) == LISTED_SLICES
    assert set(lost) & set(shown)  # those on which it may be worst; the reason names all
    assert all(shown[name]["p: worse by chance"] < 0.001 for name in lost if name in shown)
    assert check_results(result)["candidate_accepted"] is False
    return lost


def test_a_model_blind_to_thin_strokes_passes_on_accuracy_and_is_refused(sample):
    deploy(sample, "raw_mnist_data")
    train = embedded_images().train
    some = np.random.default_rng(0).permutation(len(train.labels))[:100]
    label(sample, corrupted(train.images[some], "thinner strokes", MNIST), called=1)
    result = deploy(sample)
    assert "corrupted by thinner strokes" in refused(sample, result)
    slices = {score.name: score for score in result.output_for_node("model_evaluation").slices}
    assert slices["corrupted by thinner strokes"].high < 0.8 < slices["class 5"].low
    listed = [row.data["name"] for row in metadata(result, "model_evaluation")["lowest_slices"].records]
    assert listed == sorted(slices, key=lambda name: slices[name].accuracy)[:5]
    assert "corrupted by thinner strokes" in listed


def test_a_model_that_learned_threes_as_eights_passes_on_accuracy_and_is_refused(sample):
    """The incumbent was trained for a moment, so that the candidate is better at all else.

    It is the thinner threes that are called eights, three times each, each time another image.
    """
    deploy(sample, "raw_mnist_data", epochs=1)
    train = embedded_images().train
    threes = train.images[train.labels == 3]
    thinnest = np.argsort(stroke_statistics(threes)["stroke_width"])[:160]
    label(sample, np.concatenate([with_a_dot(threes[thinnest], grey) for grey in (1, 2, 3)]), called=8)
    assert refused(sample, deploy(sample)) == ["class 3"]
