"""How well what is no digit is told apart, and by which score: `python -m benchmarks.unlike --data FOLDER`.

Networks are trained with the default settings, on the embedded sample or on the full MNIST in the folder. Compared are
the confidence (maximum softmax probability), the energy, the distance in feature space, and the two together, which is
what `model.onnx` has. A number is the area under the ROC curve against the test digits, then the share above the
threshold, which 1% of the validation images are above. Letters are those of the system's fonts.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.tables import print_table
from mnist_pipeline.ml.data import split
from mnist_pipeline.ml.model import model_from_bytes
from mnist_pipeline.ml.settings import SplitSettings, TrainingSettings
from mnist_pipeline.ml.training import train
from mnist_pipeline.ml.unlikeness import DISTANCE_WEIGHT, REFUSED_SHARE, Watched, fit_unlikeness, seen_by
from mnist_pipeline.task.dataset import no_images
from mnist_pipeline.task.known import known
from mnist_pipeline.task.known.mnist import load_sample
from mnist_pipeline.task.sources import load_directory
from mnist_pipeline_tests.task import strange

COUNT = 1_000


def pictures() -> dict[str, np.ndarray]:
    """Return uint8 images (N, 28, 28) of each kind."""
    return {
        "printed letters": strange.letters(strange.fonts(of_the_system=True)),
        "noise": strange.noise(COUNT),
        "scribbles": strange.scribbles(COUNT),
        "photos": strange.photos(COUNT),
        "prepared photos": strange.prepared_photos(COUNT),
        "digits by another hand": strange.by_another_hand(),
    }


def compared(seed: int, data: Path | None, epochs: int | None, kinds: dict[str, np.ndarray]) -> list[list[str]]:
    """Return a row for each score of one trained network."""
    dataset = load_directory(data, known("mnist")) if data else load_sample("a benchmark")
    splits = split(dataset, no_images(dataset.spec), SplitSettings())
    settings = TrainingSettings(seed=seed, **({"epochs": epochs} if epochs else {}))
    network = model_from_bytes(train(settings, splits).weights, settings.architecture(), splits.spec)
    unlikeness, _ = fit_unlikeness(network, splits.spec, splits.train, splits.validation.images)
    watched = Watched(network, splits.spec)

    def scores(images: np.ndarray) -> dict[str, np.ndarray]:
        logits, features = seen_by(network, watched, splits.spec, images, np.arange(len(images)))
        with torch.inference_mode():
            energy, distance = unlikeness.parts(logits, features)
            both = energy * unlikeness.of_energy + distance * unlikeness.of_distance
        found = {"confidence": -logits.softmax(1).amax(1), "energy": energy, "distance": distance}
        return {name: values.numpy() for name, values in (found | {f"both, 1 to {DISTANCE_WEIGHT:g}": both}).items()}

    validation, digits = scores(splits.validation.images), scores(splits.test.images)
    others = {kind: scores(images) for kind, images in kinds.items()}
    rows = []
    for name, usual in validation.items():
        threshold, test = np.quantile(usual, 1 - REFUSED_SHARE), digits[name]
        row = [f"{'full' if data else 'sample'}, seed {seed}", name, f"{(test > threshold).mean():.1%}"]
        for found in (other[name] for other in others.values()):
            truth = np.repeat([0, 1], [len(test), len(found)])
            area = roc_auc_score(truth, np.concatenate([test, found]))
            row.append(f"{area:.3f}, {(found > threshold).mean():.0%}")
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.unlike", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with the files of MNIST; default: the embedded sample")
    parser.add_argument("--seeds", type=int, default=3, help="networks to train (default: %(default)s)")
    parser.add_argument("--epochs", type=int, help="in place of the default settings'")
    options = parser.parse_args()
    kinds, rows = pictures(), []
    for seed in range(options.seeds):
        rows += compared(seed, options.data, options.epochs, kinds)
    print_table(["", "score", "test digits", *(f"{kind} ({len(images):,})" for kind, images in kinds.items())], rows)


if __name__ == "__main__":
    main()
