"""Training on images that are larger than memory, or than that of a GPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mnist_pipeline.ml.settings import TrainingSettings
from mnist_pipeline.ml.training import train
from mnist_pipeline_tests.task.examples import TINY

MEMORY = """
import re
from pathlib import Path
import numpy as np
from mnist_pipeline.files import tensors
from mnist_pipeline.ml.records import Splits
from mnist_pipeline.ml.settings import TrainingSettings
from mnist_pipeline.ml.training import train
from mnist_pipeline.task.dataset import LabelledImages
from mnist_pipeline.task.spec import TaskSpec

def held():
    return int(re.findall(r"RssAnon:\\s*(\\d+)", Path("/proc/self/status").read_text())[0]) // 1024

def photos(count):
    images = tensors.scratch((count, 64, 64, 3))
    for start in range(0, count, 500):
        images[start : start + 500] = np.random.default_rng(start).integers(0, 256, images[start : start + 500].shape)
    return LabelledImages(images, (np.arange(count) % 2).astype(np.uint8))

tensors.SCRATCH_BYTES = 1
spec = TaskSpec(class_names=("cat", "dog"), image_shape=(64, 64, 3), mean=(0.5,) * 3, std=(0.25,) * 3)
settings = TrainingSettings(conv_channels=[4, 4, 4], hidden_units=[8], epochs=1, batch_size=32)
train(settings, Splits(photos(600), photos(600), photos(2), spec, photos(0)))
splits, most = Splits(photos(10_000), photos(10_000), photos(2), spec, photos(0)), []
before = held()
train(settings, splits, lambda metrics: most.append(held()))
print(most[0] - before, splits.train.images.nbytes >> 20)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="what a process holds is told by Linux only")
def test_training_and_validation_hold_no_copy_of_the_images():
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", MEMORY], check=True, capture_output=True, text=True)
    grown, images = map(int, run.stdout.split())
    assert images == 117
    assert grown < images / 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_that_would_fill_a_gpu_go_there_by_batches(splits, monkeypatch):
    usual = train(TrainingSettings(**TINY, device="cuda"), splits)
    monkeypatch.setattr("mnist_pipeline.ml.training.GPU_SHARE", 0)
    assert train(TrainingSettings(**TINY, device="cuda"), splits).weights == usual.weights
