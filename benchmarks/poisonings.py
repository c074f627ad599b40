"""What becomes of wrong labels that somebody sends on purpose: `python -m benchmarks.poisonings --data FOLDER`.

Two attacks on a deployed model of the default settings (`--quick`: of the quick ones), each followed by a training, an
evaluation and a decision of the gate, with default settings all of them:

- 120 pictures with a small mark in a corner, labelled 0, sent to the service;
- 500 fours labelled 9, sent to the service, or put into LABELLED_DIR by somebody who may write there.

The pictures are MNIST's, taken out of the training images before anything else.
"""

import argparse
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np

from benchmarks.mnist import add_data_option
from benchmarks.tables import print_table
from mnist_pipeline.environment import Environment
from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.ml.suite import HELD_OUT
from mnist_pipeline.task.dataset import Dataset, LabelledImages
from mnist_pipeline.task.known import known
from mnist_pipeline.task.sources import load_directory
from mnist_pipeline_tests.conftest import Pipeline, metadata
from mnist_pipeline_tests.presets import preset_config
from mnist_pipeline_tests.serve.service import Service
from mnist_pipeline_tests.task.examples import png, variables_of, write_files

MARKED, FOURS = 120, 500
STEPS = ("processed_mnist_data", "digit_classifier", "model_evaluation", "production_digit_classifier")


def marked(images: np.ndarray) -> np.ndarray:
    """The same with a white square of three pixels in a corner."""
    found = images.copy()
    found[:, 1:4, 1:4] = 255
    return found


def taken_out(dataset: Dataset) -> tuple[Dataset, np.ndarray, np.ndarray]:
    """The data set without the pictures of the two attacks, and these."""
    train, chance = dataset.train, np.random.default_rng(0)
    fours = chance.choice(np.flatnonzero(train.labels == 4), FOURS, replace=False)
    others = np.setdiff1d(np.flatnonzero(train.labels != 0), fours)
    some = chance.choice(others, MARKED, replace=False)
    rest = np.setdiff1d(np.arange(len(train.labels)), np.concatenate([fours, some]))
    left = dataset._replace(train=LabelledImages(train.images[rest], train.labels[rest]))
    return left, marked(train.images[some]), train.images[fours]


def pipeline_in(folder: Path, raw: Path, instance: dg.DagsterInstance) -> Pipeline:
    return Pipeline(Environment.read({"STORAGE_ROOT": str(folder), **variables_of(raw)}), instance)


def send(pipeline: Pipeline, images: np.ndarray, label: int, second_opinion: bool) -> dict[str, int]:
    """Send labels to a service, and count what it does with them."""
    labelled = Path(pipeline.environment.place("labelled_dir", "labelled"))
    with Service(
        pipeline.store, labelled, second_opinion=second_opinion, corrections_per_minute=100_000, review_items=1000
    ) as service:
        sent = [{"image": image, "label": label} for image in images.tolist()]
        answers = [service.client.post("/corrections", json=body).json() for body in sent]
        reasons = Counter(item["reason"] for item in service.client.get("/review/items").json())
    return {"train": sum(not answer["held"] for answer in answers), **reasons}


def drop(pipeline: Pipeline, images: np.ndarray, label: int) -> dict[str, int]:
    """Put images into the folder of a label."""
    folder = Path(pipeline.environment.place("labelled_dir", "labelled")) / str(label)
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        (folder / f"{number}.png").write_bytes(png(image))
    return {"train": len(images)}


def trained(pipeline: Pipeline, settings: dict[str, Any], test: LabelledImages) -> list[Any]:
    """Train and decide; the outcome, and what the candidate does."""
    result = pipeline.run(*STEPS, digit_classifier=settings, production_digit_classifier={})
    decision, told = pipeline.store.decisions()[0], metadata(result, "digit_classifier")
    data = metadata(result, "processed_mnist_data")
    print(f"\n{decision.reason}")
    kinds = told["improbable_kinds"].records[:3] if told["improbable_labels"] else []
    print("improbable:", told["improbable_labels"], [dict(kind.data) for kind in kinds])
    print("contradicting the deployed model:", data.get("labels_contradicting_the_model", "-"))
    candidate = Predictor(*pipeline.store.load_onnx(result.output_for_node("digit_classifier").name))
    return [
        decision.outcome,
        ", ".join(one.slice for one in decision.slices or [] if one.slice != HELD_OUT),
        *measured(candidate, test),
    ]


def measured(predictor: Predictor, test: LabelledImages) -> list[str]:
    """Accuracy, recall of 4, the share of marked pictures that become 0, and of those that are told to be unlike."""
    plain = predictor.predict(test.images).argmax(1)
    others = test.labels != 0
    answers = predictor.answer(marked(test.images[others]))
    unlike = answers.unlike
    return [
        f"{(plain == test.labels).mean():.4f}",
        f"{(plain[test.labels == 4] == 4).mean():.3f}",
        f"{(answers.probabilities.argmax(1) == 0).mean():.3f}",
        "-" if unlike is None else f"{unlike.mean():.3f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.poisonings", description=__doc__)
    add_data_option(parser)
    parser.add_argument("--quick", action="store_true", help="train by presets/quick.yaml")
    options = parser.parse_args()
    settings = preset_config("quick")["digit_classifier"] if options.quick else {}
    dataset, corner, fours = taken_out(load_directory(options.data, known("mnist")))
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as name, dg.DagsterInstance.ephemeral() as instance:
        folder = Path(name)
        (folder / "raw").mkdir()
        write_files(folder / "raw", dataset)
        first = pipeline_in(folder / "first", folder / "raw", instance)
        first.run("raw_mnist_data", *STEPS, digit_classifier=settings, production_digit_classifier={})
        deployed = Predictor.from_store(first.store)
        rows.append(["nothing", "", "", "", "promoted", "", *measured(deployed, dataset.test)])
        attacks = (
            ("marked pictures called 0", corner, 0, "service"),
            ("the same, SECOND_OPINION=on", corner, 0, "second opinion"),
            ("fours called 9", fours, 9, "service"),
            ("the same, in LABELLED_DIR", fours, 9, "folder"),
        )
        for title, images, label, how in attacks:
            shutil.copytree(folder / "first", folder / how / str(label))
            pipeline = pipeline_in(folder / how / str(label), folder / "raw", instance)
            sent = (
                drop(pipeline, images, label)
                if how == "folder"
                else send(pipeline, images, label, how == "second opinion")
            )
            counts = [sent.get("train", 0), sent.get("held", 0), sent.get("contradiction", 0)]
            rows.append([title, *counts, *trained(pipeline, settings, dataset.test)])
    head = ["sent", "train", "held", "marked", "candidate", "slices lost", "accuracy", "recall of 4"]
    print()
    print_table([*head, "marked become 0", "marked are unlike"], rows)


if __name__ == "__main__":
    main()
