"""What the gate decides about real models on the full MNIST: `python -m benchmarks.gate_models --results FOLDER`.

Ten pairs that differ in nothing but the seed, and ten each of a candidate that is trained on half of the data, for a
quarter of the epochs, or with the labels of 3 and 8 swapped in 2% of the training images. What each model predicts for
the test images is kept in the folder, so that a run that was stopped goes on. On a CPU it takes hours; `--device cuda`.
"""

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mnist import add_data_option
from benchmarks.tables import print_table
from mnist_pipeline.ml.comparison import Contender
from mnist_pipeline.ml.gate import decide
from mnist_pipeline.ml.records import Digests
from mnist_pipeline.ml.settings import DeploymentSettings, SplitSettings, TrainingSettings
from mnist_pipeline.task.dataset import LabelledImages
from mnist_pipeline.task.known import known
from mnist_pipeline.task.sources import load_directory

PAIRS = 10
SWAPPED, SWAPPED_SHARE = (3, 8), 0.02
INCUMBENT = "the default"
CANDIDATES: dict[str, dict[str, Any]] = {
    "the same, another seed": {},
    "half of the training images": {},
    "a quarter of the epochs": {"epochs": 5},
    "labels of 3 and 8 swapped in 2% of training": {},
}


def changed(train: LabelledImages, kind: str) -> LabelledImages:
    """Return the training images of one kind of candidate."""
    chance = np.random.default_rng(0)
    if kind.startswith("half"):
        half = np.sort(chance.permutation(len(train.labels))[: len(train.labels) // 2])
        return LabelledImages(train.images[half], train.labels[half])
    if kind.startswith("labels"):
        labels = train.labels.copy()
        of_both = np.flatnonzero(np.isin(labels, SWAPPED))
        chosen = chance.choice(of_both, int(SWAPPED_SHARE * len(labels)), replace=False)
        labels[chosen] = sum(SWAPPED) - labels[chosen]
        return LabelledImages(train.images, labels)
    return train


def predicted(kind: str, seed: int, data: Path, results: Path, device: str) -> np.ndarray:
    """Return the labels that a model of a kind predicts for the test images; trained, if it is not in `results`."""
    path = results / f"{kind.replace(' ', '_')}-{seed}.npy"
    if not path.exists():
        import torch

        from mnist_pipeline.ml.data import split
        from mnist_pipeline.ml.model import model_from_bytes, predict_logits
        from mnist_pipeline.ml.training import train
        from mnist_pipeline.task.dataset import no_images

        torch.set_num_threads(2)
        dataset = load_directory(data, known("mnist"))
        splits = split(dataset, no_images(dataset.spec), SplitSettings())
        settings = TrainingSettings(seed=seed, device=device, **CANDIDATES.get(kind, {}))
        result = train(settings, splits._replace(train=changed(splits.train, kind)))
        network = model_from_bytes(result.weights, settings.architecture(), dataset.spec)
        np.save(path, predict_logits(network, splits.test.images, dataset.spec).argmax(1).numpy())
    return np.load(path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate_models", description=__doc__)
    add_data_option(parser)
    parser.add_argument("--results", type=Path, required=True, help="folder of what the models predicted")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time (default: %(default)s)")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    labels = load_directory(options.data, known("mnist")).test.labels
    model = partial(predicted, data=Path(options.data), results=options.results, device=options.device)
    wanted = [(INCUMBENT, seed) for seed in range(PAIRS)]
    wanted += [(kind, PAIRS + seed) for kind in CANDIDATES for seed in range(PAIRS)]
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as workers:
        found = dict(zip(wanted, workers.map(model, *zip(*wanted, strict=True)), strict=True))
    rows, details = [], []
    for kind in CANDIDATES:
        decisions = []
        for seed in range(PAIRS):
            old, new = (
                Contender(f"{name}, seed {number}", Digests(f"{name} {number}", None), found[name, number] == labels)
                for name, number in ((INCUMBENT, seed), (kind, PAIRS + seed))
            )
            verdict = decide(new, old, None, DeploymentSettings())
            decisions.append((verdict, new.accuracy, old.accuracy))
            details.append([kind, seed, verdict.outcome, verdict.reason])
        verdicts = [verdict for verdict, _, _ in decisions]
        disagreements = [verdict.comparisons[0].fixed + verdict.comparisons[0].broken for verdict in verdicts]
        rows.append(
            [
                kind,
                sum(verdict.outcome == "promoted" for verdict in verdicts),
                sum(bool(verdict.too_few_images) for verdict in verdicts),
                f"{np.mean([new for _, new, _ in decisions]):.4f}, {np.mean([old for _, _, old in decisions]):.4f}",
                f"{min(disagreements)} to {max(disagreements)}",
                f"{np.mean([verdict.comparisons[0].regression for verdict in verdicts]):+.4f}",
                f"{min(v.comparisons[0].regression_high for v in verdicts):.4f} to "
                f"{max(v.comparisons[0].regression_high for v in verdicts):.4f}",
            ]
        )
    header = ["candidate", "promoted of 10", "too few images", "accuracy: candidate, incumbent", "disagreements"]
    print_table([*header, "mean regression", "upper ends of the regression"], rows)
    print()
    print_table(["candidate", "pair", "decision", "reason"], details)


if __name__ == "__main__":
    main()
