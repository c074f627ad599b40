"""What the gate decides about real models on the full MNIST: `python -m benchmarks.gate_models --results FOLDER`.

Pairs that differ in nothing but the seed, and as many each of a candidate that is trained on half of the data, for a
quarter of the epochs, or with the labels of 3 and 8 swapped in 2% of the training images; decided by the test images
and by the slices of the evaluation suite. What each model predicts is kept in the folder, so that a run that was
stopped goes on. Ten pairs of the default settings take hours on a CPU: `--device cuda`, or `--quick`.
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
from mnist_pipeline.ml.records import Digests, Splits
from mnist_pipeline.ml.settings import DeploymentSettings, SplitSettings, TrainingSettings
from mnist_pipeline.ml.suite import Suite, suite
from mnist_pipeline.task.dataset import LabelledImages
from mnist_pipeline.task.known import known
from mnist_pipeline.task.sources import load_directory
from mnist_pipeline_tests.presets import preset_config

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


def predicted(kind: str, seed: int, data: Path, results: Path, device: str, quick: bool) -> np.ndarray:
    """Return the labels that a model predicts for all images of the suite; trained, if it is not in `results`."""
    path = results / f"{'quick-' if quick else ''}{kind.replace(' ', '_')}-{seed}.suite.npy"
    if not path.exists():
        import torch

        from mnist_pipeline.ml.model import model_from_bytes, predict_logits
        from mnist_pipeline.ml.training import train

        torch.set_num_threads(2)
        splits, images = asked(data)
        recipe = (preset_config("quick")["digit_classifier"] if quick else {}) | CANDIDATES.get(kind, {})
        settings = TrainingSettings(seed=seed, device=device, **recipe)
        result = train(settings, splits._replace(train=changed(splits.train, kind)))
        network = model_from_bytes(result.weights, settings.architecture(), splits.spec)
        parts = (part for one in images.sets for part in one.parts())
        labels = [predict_logits(network, part, splits.spec).argmax(1).numpy().astype(np.uint8) for part in parts]
        np.save(path, np.concatenate(labels))
    return np.load(path)


def asked(data: Path) -> tuple[Splits, Suite]:
    """Return the splits of the full MNIST and its evaluation suite."""
    from mnist_pipeline.ml.data import content_digest, split
    from mnist_pipeline.task.dataset import no_images

    dataset = load_directory(data, known("mnist"))
    splits = split(dataset, no_images(dataset.spec), SplitSettings())
    return splits, suite(splits, content_digest(splits.test))


def contender(name: str, found: np.ndarray, labels: np.ndarray, images: Suite) -> Contender:
    correct, digests = found == labels, Digests(name, None)
    whole = Contender(name, digests, correct)
    return Contender(name, digests, correct[: images.test_images], in_suite=whole)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate_models", description=__doc__)
    add_data_option(parser)
    parser.add_argument("--results", type=Path, required=True, help="folder of what the models predicted")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--pairs", type=int, default=10, help="pairs of each kind (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="train by presets/quick.yaml, which has few epochs")
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time (default: %(default)s)")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    _, images = asked(options.data)
    labels = np.concatenate([one.labels for one in images.sets])
    model = partial(
        predicted, data=Path(options.data), results=options.results, device=options.device, quick=options.quick
    )
    pairs = options.pairs
    kinds = [kind for kind in CANDIDATES if not (options.quick and "epochs" in CANDIDATES[kind])]
    wanted = [(INCUMBENT, seed) for seed in range(pairs)]
    wanted += [(kind, pairs + seed) for kind in kinds for seed in range(pairs)]
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as workers:
        found = dict(zip(wanted, workers.map(model, *zip(*wanted, strict=True)), strict=True))
    rows, details = [], []
    for kind in kinds:
        decisions = []
        for seed in range(pairs):
            old, new = (
                contender(f"{name}, seed {number}", found[name, number], labels, images)
                for name, number in ((INCUMBENT, seed), (kind, pairs + seed))
            )
            verdict = decide(new, old, None, DeploymentSettings(), slices=images.slices)
            decisions.append((verdict, new.accuracy, old.accuracy))
            details.append([kind, seed, verdict.outcome, verdict.reason])
        verdicts = [verdict for verdict, _, _ in decisions]
        disagreements = [verdict.comparisons[0].fixed + verdict.comparisons[0].broken for verdict in verdicts]
        rows.append(
            [
                kind,
                sum(verdict.outcome == "promoted" for verdict in verdicts),
                sum(bool(verdict.too_few_images) for verdict in verdicts),
                ", ".join(sorted({str(one.slice) for verdict in verdicts for one in verdict.lost_slices})) or "none",
                f"{np.mean([new for _, new, _ in decisions]):.4f}, {np.mean([old for _, _, old in decisions]):.4f}",
                f"{min(disagreements)} to {max(disagreements)}",
                f"{np.mean([verdict.comparisons[0].regression for verdict in verdicts]):+.4f}",
                f"{min(v.comparisons[0].regression_high for v in verdicts):.4f} to "
                f"{max(v.comparisons[0].regression_high for v in verdicts):.4f}",
            ]
        )
    header = [
        "candidate",
        f"promoted of {pairs}",
        "too few images",
        "slices lost",
        "accuracy: candidate, incumbent",
        "disagreements",
    ]
    print_table([*header, "mean regression", "upper ends of the regression"], rows)
    print()
    print_table(["candidate", "pair", "decision", "reason"], details)


if __name__ == "__main__":
    main()
