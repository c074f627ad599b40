"""The splits: training, validation, test, and the labelled images that never train."""

from collections.abc import Iterator

import dagster as dg

from mnist_pipeline.defs.assets.labelled_digits import labelled_digits
from mnist_pipeline.defs.conditions import eager_if_data_changed
from mnist_pipeline.defs.metadata import LISTED_FILES, class_table, left_out, picture
from mnist_pipeline.defs.resources.folders import LabelledImagesResource, ReviewResource
from mnist_pipeline.defs.resources.stores import ModelStoreResource
from mnist_pipeline.defs.reviewing import MOST_TO_REVIEW, held_back, to_review
from mnist_pipeline.files.folders import printable
from mnist_pipeline.ml.records import Splits
from mnist_pipeline.ml.settings import SplitSettings
from mnist_pipeline.task.dataset import Dataset, LabelledImages
from mnist_pipeline.task.spec import TaskSpec

MAX_CLASS_SHARE_DIFFERENCE = 0.02
"""Labelled images may move the training shares up to here, and rounding those of validation by an image more."""

USUAL_VALIDATION_FRACTION = (0.05, 0.5)
"""Less chooses the best epoch by chance, more leaves too little to train on."""

CHECKS = [
    dg.AssetCheckSpec("class_balance", asset="processed_mnist_data", description="Train and validation alike."),
    dg.AssetCheckSpec(
        "nothing_lost",
        asset="processed_mnist_data",
        description="Every raw and every labelled image is in one split.",
    ),
    dg.AssetCheckSpec(
        "split_proportions",
        asset="processed_mnist_data",
        description="Warns of an unusually small or large validation split.",
    ),
    dg.AssetCheckSpec(
        "no_leakage", asset="processed_mnist_data", description="No validation, test or held-out image in train."
    ),
]


class SplitConfig(dg.Config, SplitSettings):
    """The division into train and validation."""


@dg.asset(
    group_name="data_processing",
    kinds={"python", "safetensors"},
    code_version="3",
    io_manager_key="tensor_io_manager",
    dagster_type=dg.PythonObjectDagsterType(Splits),
    check_specs=CHECKS,
    deps=[labelled_digits],
    automation_condition=eager_if_data_changed(),
)
def processed_mnist_data(
    context: dg.AssetExecutionContext,
    config: SplitConfig,
    raw_mnist_data: Dataset,
    labelled_digits_dir: LabelledImagesResource,
    model_store: ModelStoreResource,
    review_dir: ReviewResource,
) -> Iterator[dg.Output[Splits] | dg.AssetCheckResult]:
    """Train, validation (stratified) and test; labelled images join train, but for those that are held out, which show
    whether the others help. One that is a training image already corrects its label; one that is a test image is not
    used. Labels that the deployed model contradicts train, and are to be looked at on /review. Images stay uint8."""
    from mnist_pipeline.files.errors import DataError
    from mnist_pipeline.ml.data import class_counts, data_version, relabelled, shared_images, split
    from mnist_pipeline.ml.labelled import read_labelled
    from mnist_pipeline.ml.plots import class_distribution, class_grid

    raw, spec = raw_mnist_data, raw_mnist_data.spec
    labelled = read_labelled(labelled_digits_dir.path(), spec, labelled_digits_dir.links)
    for name, why in list(labelled.skipped.items())[:LISTED_FILES]:
        context.log.warning("labelled image %s is skipped: %s", printable(name), why)
    try:
        splits = split(raw_mnist_data, labelled.images, config)
    except DataError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    labels = {name: part.labels for name, part in splits.parts.items()}
    digest = data_version(spec, *splits.parts.values())
    metadata: dict[str, dg.RawMetadataValue] = {
        **{f"{name}_images": len(part) for name, part in labels.items()},
        "labelled_digits_joined": len(splits.train.labels) + len(splits.validation.labels) - len(raw.train.labels),
        "labelled_digits_relabelled": int((relabelled(raw.train, labelled.images)[0] != raw.train.labels).sum()),
        "labelled_digits_of_test_images": shared_images(raw.test, labelled.images),
        "labelled_digits_held_out": len(splits.held_out.labels),
        "labelled_digits_skipped": len(labelled.skipped),
        **held_back(context, review_dir),
        "sha256": digest,
        "classes": class_table(spec, {name: class_counts(part, spec) for name, part in labels.items()}),
        "class_distribution": picture(class_distribution(labels, spec), "class distribution"),
    }
    if labelled.skipped:
        metadata["skipped_files"] = left_out(labelled.skipped)["left_out"]
    if len(labelled.images.labels):
        metadata["labelled_digits"] = picture(class_grid(labelled.images, spec), "images labelled by people")
        metadata |= _contradictions(context, labelled.images, spec, model_store, review_dir)
    yield dg.Output(splits, data_version=dg.DataVersion(digest), metadata=metadata)
    yield from processed_data_checks(splits, raw_mnist_data, labelled.images)


def _contradictions(
    context: dg.AssetExecutionContext,
    labelled: LabelledImages,
    spec: TaskSpec,
    model_store: ModelStoreResource,
    review_dir: ReviewResource,
) -> "dict[str, dg.RawMetadataValue]":
    """Send the labels that the deployed model contradicts to /review.

    A model that cannot be asked stops no data.
    """
    from mnist_pipeline.ml.errors import ModelError, NoDeployedModel
    from mnist_pipeline.ml.predictor import Predictor
    from mnist_pipeline.ml.review_items import contradictions
    from mnist_pipeline.stores.errors import ModelStoreError

    try:
        predictor = Predictor.from_store(model_store)
        predictor.require_images_of(spec)
        count, items = contradictions(predictor, labelled, spec)
    except NoDeployedModel:
        return {}
    except (ModelError, ModelStoreError, OSError) as error:
        context.log.warning("labels are not compared with the deployed model: %s", error)
        return {"labels_not_compared": str(error)}
    metadata: dict[str, dg.RawMetadataValue] = {"labels_contradicting_the_model": count}
    return metadata | to_review(context, review_dir, items, MOST_TO_REVIEW)


def processed_data_checks(
    processed_mnist_data: Splits, raw_mnist_data: Dataset, labelled: LabelledImages
) -> Iterator[dg.AssetCheckResult]:
    """Yield the results of CHECKS."""
    import numpy as np

    from mnist_pipeline.ml.data import among, class_counts, content_digest, missing_images, relabelled, shared_images

    train, validation, test, spec, held_out = processed_mnist_data
    shares = [np.array(class_counts(part.labels, spec)) / len(part.labels) for part in (train, validation)]
    difference = float(np.abs(shares[0] - shares[1]).max())
    allowed = MAX_CLASS_SHARE_DIFFERENCE + 1 / len(validation.labels)
    yield dg.AssetCheckResult(
        check_name="class_balance",
        passed=difference <= allowed,
        description=f"the share of a class differs by up to {difference:.4f}, allowed {allowed:.4f}",
        metadata={"largest_difference": difference},
    )
    # Labelled images add to train or are held out; nothing may be missing, and test is handed on untouched.
    labels, known = relabelled(raw_mnist_data.train, labelled)
    missing = missing_images(LabelledImages(raw_mnist_data.train.images, labels), [train, validation])
    known |= among(raw_mnist_data.test, labelled)
    joining = LabelledImages(labelled.images[~known], labelled.labels[~known])
    unlabelled = missing_images(joining, [train, held_out])
    untouched = content_digest(test) == content_digest(raw_mnist_data.test)
    yield dg.AssetCheckResult(
        check_name="nothing_lost",
        passed=not missing and not unlabelled and untouched,
        description=f"{missing} training images and {unlabelled} labelled ones are missing; test is "
        f"{'untouched' if untouched else 'not the raw one'}",
        metadata={
            "missing_training_images": missing,
            "missing_labelled_images": unlabelled,
            "test_untouched": untouched,
        },
    )
    fraction = len(validation.labels) / len(raw_mnist_data.train.labels)
    low, high = USUAL_VALIDATION_FRACTION
    yield dg.AssetCheckResult(
        check_name="split_proportions",
        passed=low <= fraction <= high,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{fraction:.3f} of the training images validate; usual is {low} to {high}",
        metadata={"validation_fraction": fraction},
    )
    others = {"test": test, "validation": validation, "held-out": held_out}
    found = {name: shared_images(train, part) for name, part in others.items()}
    yield dg.AssetCheckResult(
        check_name="no_leakage",
        passed=not any(found.values()),
        description=", ".join(f"{count} {name}" for name, count in found.items()) + " images stand in train too",
        metadata={f"{name.replace('-', '_')}_images_in_train": count for name, count in found.items()},
    )
