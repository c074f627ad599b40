"""Batch inference beside a float32 DataLoader loop with the same weights over the same files; memory at a million
images; latency of one image.

    .venv/bin/python -m benchmarks.inference
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.mnist import add_data_option, resized, torchvision_root
from benchmarks.processes import measure
from benchmarks.tables import print_table
from mnist_pipeline.ml.data import split
from mnist_pipeline.ml.inference import predict_to_parquet
from mnist_pipeline.ml.inputs import find_inputs, read_batches
from mnist_pipeline.ml.manifest import ModelManifest, TrainingRecord
from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.ml.settings import BatchPredictionSettings, SplitSettings, TrainingSettings
from mnist_pipeline.task.dataset import Dataset, LabelledImages, no_images
from mnist_pipeline.task.known import known
from mnist_pipeline.task.sources import load_directory

FILE_IMAGES = 10_000
"""In each file of the million."""


def trained_model(dataset: Dataset) -> tuple[ModelManifest, bytes, bytes]:
    """A model of the default architecture, of one short epoch: all that a stored one has, weights and ONNX file."""
    # Here, so that the processes whose memory is measured do not import what trains.
    from mnist_pipeline.ml import drift
    from mnist_pipeline.ml.export import export
    from mnist_pipeline.ml.training import train

    splits = split(dataset, no_images(dataset.spec), SplitSettings())
    settings = TrainingSettings(epochs=1)
    few = splits._replace(train=LabelledImages(*(part[:10_000] for part in splits.train)))
    result = train(settings, few)
    exported = export(result.weights, settings, splits)
    reference = drift.reference(splits.validation.images, exported.answers.probabilities, splits.spec)
    manifest = ModelManifest(
        name="benchmark",
        weights_sha256="",
        task=splits.spec,
        network=settings.architecture(),
        training=TrainingRecord(drift_reference=reference),
    )
    return manifest, result.weights, exported.onnx


def by_loop(root: Path, manifest: ModelManifest, weights: bytes) -> tuple[float, list[int]]:
    """Images a second and labels of the test images as the tutorial would predict them."""
    import torch
    from torch.utils.data import DataLoader

    from benchmarks import tutorial
    from mnist_pipeline.ml.model import model_from_bytes

    images = tutorial.images(root, train=False)
    # Laid out in memory as networks are unless somebody asks otherwise.
    model = model_from_bytes(weights, manifest.network, manifest.task).to(memory_format=torch.contiguous_format)
    labels: list[int] = []
    began = time.perf_counter()
    with torch.no_grad():
        for inputs, _ in DataLoader(images, batch_size=64):
            labels += model(inputs).argmax(1).tolist()
    return len(labels) / (time.perf_counter() - began), labels


def by_us(paths: list[Path], manifest: ModelManifest, onnx: bytes, table: Path) -> float:
    """Images a second of reading, predicting, drift statistics and the table, as `batch_digit_predictions` does it.

    What the asset does besides, the digest of its input and the upload of its tables, is left out.
    """
    predictor = Predictor(manifest, onnx, device="cpu")  # as the loop
    batches = read_batches(find_inputs(paths), manifest.task, BatchPredictionSettings().batch_size)
    began = time.perf_counter()
    with table.open("wb") as file, table.with_suffix(".errors").open("wb") as errors:
        result = predict_to_parquet(predictor, batches, file, errors)
    return result.images / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="up to 100,000 images instead of a million")
    arguments = parser.parse_args()
    dataset = load_directory(arguments.data, known("mnist"))
    manifest, weights, onnx = trained_model(dataset)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = torchvision_root(folder, arguments.data)
        throughput(root, manifest, weights, onnx, arguments.rounds)
        print()
        memory(folder, dataset, manifest, onnx, 100_000 if arguments.quick else 1_000_000)
    print()
    latency(manifest, onnx)


def throughput(root: Path, manifest: ModelManifest, weights: bytes, onnx: bytes, rounds: int) -> None:
    file, table = root / "MNIST/raw" / "t10k-images-idx3-ubyte", root / "table.parquet"
    speeds = []
    for _ in range(rounds):
        loop, labels = by_loop(root, manifest, weights)
        speeds.append((loop, by_us([file], manifest, onnx, table)))
    ours = pq.read_table(table).column("label").to_numpy()
    loop, us = (statistics.median(values) for values in zip(*speeds, strict=True))
    print_table(
        ["10,000 test images, median of rounds", "images/s", "ratio", "same labels"],
        [
            ["DataLoader, batches of 64", f"{loop:.0f}", "1.0", ""],
            ["batch predictions", f"{us:.0f}", f"{us / loop:.1f}", f"{np.mean(ours == labels):.2%}"],
        ],
    )


def memory(folder: Path, dataset: Dataset, manifest: ModelManifest, onnx: bytes, most: int) -> None:
    """Folders of npy files, made by shifting real images; each is predicted in a process of its own."""
    images = resized(dataset, most).train.images
    rows = []
    for count in sorted({FILE_IMAGES, most // 10, most}):
        inputs = folder / str(count)
        inputs.mkdir()
        for start in range(0, count, FILE_IMAGES):
            np.save(inputs / f"{start:07d}.npy", images[start : start + FILE_IMAGES])
        cost = measure(by_us, [inputs], manifest, onnx, folder / "table.parquet")
        rows.append([f"{count:,}", f"{cost.seconds:.1f}", f"{cost.result:.0f}", f"{cost.peak_mib:.0f}"])
    print_table(["images", "seconds", "images/s", "peak MiB of the process"], rows)


def latency(manifest: ModelManifest, onnx: bytes) -> None:
    predictor = Predictor(manifest, onnx)
    image = np.zeros((1, *manifest.task.array_shape), np.uint8)
    seconds = []
    for _ in range(1100):
        began = time.perf_counter()
        predictor.predict(image)
        seconds.append(time.perf_counter() - began)
    cuts = statistics.quantiles(seconds[100:], n=100)
    print_table(
        ["one image, after 100 to warm up", "ms"],
        [[f"p{percent}", f"{cuts[percent - 1] * 1000:.2f}"] for percent in (50, 95, 99)],
    )


if __name__ == "__main__":
    main()
