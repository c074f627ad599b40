"""What happens to a deployment in the live test, step by step."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mnist_pipeline.stores import LocalModelStore
from mnist_pipeline_tests.live import CHAIN, PROJECT, SETTINGS, Count, Deployment
from mnist_pipeline_tests.task.examples import embedded_images, small_dataset, variables_of, write_files

PER_CLASS = 80
"""Training images in the beginning; those after them come as labelled digits."""


class Scenario:
    """The deployment and its folders; each method is something that happens."""

    def __init__(
        self,
        folder: Path,
        module: str = "mnist_pipeline.definitions",
        instance: Path | str = PROJECT / "dagster.yaml",
        **variables: Any,
    ) -> None:
        self.raw = folder / "raw"
        self.raw.mkdir(parents=True)
        full = embedded_images()
        write_files(self.raw, small_dataset(PER_CLASS, 100))
        self.input = folder / "input"
        self.input.mkdir()
        np.save(self.input / "first.npy", full.test.images[:100])
        self.deployment = Deployment(
            folder / "deployment",
            module,
            SETTINGS,
            instance,
            PREDICTION_INPUT=str(self.input),
            **variables_of(self.raw),
            **variables,
        )
        storage = Path(self.deployment.variables["STORAGE_ROOT"])
        self.labelled, self.checkpoints = storage / "labelled", storage / "checkpoints"
        self.store = LocalModelStore(base_path=str(storage / "models"))
        self.dropped = PER_CLASS

    def first_build(self) -> Count:
        """Nothing is there yet, and nobody clicks."""
        self.deployment.start()
        self.deployment.wait_for(lambda: self.deployment.built(CHAIN[-1]), "the first predictions", 300)
        return self.rest()

    def raw_data_again(self) -> Count:
        """Raw data is verified again, and found unchanged."""
        self.deployment.launch("assets", "raw_mnist_data")
        return self.rest()

    def images_to_predict(self) -> Count:
        """A new file comes into the folder of the batch predictions."""
        np.save(self.input / "second.npy", embedded_images().test.images[100:150])
        return self.rest()

    def labelled_digits(self, per_class: int) -> None:
        """People drop labelled digits into the folder."""
        train = embedded_images().train
        for label, name in enumerate(embedded_images().spec.class_names):
            (self.labelled / name).mkdir(parents=True, exist_ok=True)
            positions = np.flatnonzero(train.labels == label)[self.dropped : self.dropped + per_class]
            for position in positions:
                Image.fromarray(train.images[position]).save(self.labelled / name / f"{position}.png")
        self.dropped += per_class

    def epochs(self) -> int:
        """How many epochs were reported by all trainings together."""
        return self.deployment.epochs()

    def wait_for_more(self, asset: str, than: int) -> list[dict[str, Any]]:
        """All materializations of an asset, once there are more."""
        return self.deployment.wait_for(
            lambda: len(found := self.deployment.built(asset)) > than and found, f"another {asset}", 300
        )

    def rest(self) -> Count:
        """What was launched so far, once nothing more is."""
        self.deployment.settle()
        return self.deployment.count()
