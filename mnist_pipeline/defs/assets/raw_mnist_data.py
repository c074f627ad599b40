"""The raw data set, verified and untouched."""

import hashlib
from collections.abc import Iterator

import dagster as dg

from mnist_pipeline.defs.conditions import cron_tick, on_cron_or_eager_if_data_changed
from mnist_pipeline.defs.metadata import class_table, left_out, picture
from mnist_pipeline.defs.resources.folders import RawDataResource
from mnist_pipeline.task.dataset import DEFAULT_DATASET, Dataset, DatasetSettings

MOST_TO_LEAST = 10
"""The ratio of the largest to the smallest class from which a network tends to overlook the small one."""

CHECKS = [
    dg.AssetCheckSpec("complete", asset="raw_mnist_data", description="Shapes, sizes, and every class present."),
    dg.AssetCheckSpec(
        "class_sizes",
        asset="raw_mnist_data",
        description="Warns where a class has far fewer training images than another.",
    ),
    dg.AssetCheckSpec("full_data_set", asset="raw_mnist_data", description="Warns while the sample stands in."),
]


RAW_CODE_VERSION = "1"


def raw_code_version(settings: DatasetSettings) -> str:
    """Return the version of the code that reads the data: another data set is like another code, and read at once."""
    if settings.dataset == DEFAULT_DATASET:
        return RAW_CODE_VERSION
    return f"{RAW_CODE_VERSION}-{hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:16]}"


@dg.asset(
    group_name="data_processing",
    kinds={"python", "safetensors"},
    code_version=RAW_CODE_VERSION,
    io_manager_key="tensor_io_manager",
    dagster_type=dg.PythonObjectDagsterType(Dataset),
    check_specs=CHECKS,
    automation_condition=on_cron_or_eager_if_data_changed(cron_tick("RAW_DATA_CRON")),
)
def raw_mnist_data(
    context: dg.AssetExecutionContext, raw_data: RawDataResource
) -> Iterator[dg.Output[Dataset] | dg.AssetCheckResult]:
    """The verified data set, untouched: uint8 images (0..255) and labels of train and test."""
    from mnist_pipeline.files.errors import DataError
    from mnist_pipeline.ml.data import class_counts, data_version
    from mnist_pipeline.ml.plots import class_distribution, class_grid
    from mnist_pipeline.task.sources import load_dataset

    try:
        dataset = load_dataset(raw_data.settings(), raw_data.mirrors)
    except DataError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    context.log.info("data: %s", dataset.description)
    spec = dataset.spec
    digest = data_version(spec, dataset.train, dataset.test)
    labels = {"train": dataset.train.labels, "test": dataset.test.labels}
    counts = {name: class_counts(part, spec) for name, part in labels.items()}
    yield dg.Output(
        dataset,
        data_version=dg.DataVersion(digest),
        metadata={
            "data": dataset.description,
            "train_images": len(dataset.train.labels),
            "test_images": len(dataset.test.labels),
            "task": spec.name,
            "sha256": digest,
            "classes": class_table(spec, counts),
            "class_distribution": picture(class_distribution(labels, spec), "class distribution"),
            "examples": picture(class_grid(dataset.train, spec), "training images of each class"),
            **({"skipped_files": left_out(dataset.skipped)["left_out"]} if dataset.skipped else {}),
        },
    )
    yield from raw_data_checks(dataset)


def raw_data_checks(raw_mnist_data: Dataset) -> Iterator[dg.AssetCheckResult]:
    """Yield the results of CHECKS."""
    from mnist_pipeline.files.errors import DataError
    from mnist_pipeline.ml.data import class_counts
    from mnist_pipeline.task.dataset import validate

    problems: list[str] = []
    spec = raw_mnist_data.spec
    numbers: dict[str, int] = {}
    for name, part in (("train", raw_mnist_data.train), ("test", raw_mnist_data.test)):
        try:
            validate(part, name, spec)
        except DataError as error:
            problems.append(str(error))
            continue
        counts = class_counts(part.labels, spec)
        numbers |= {f"{name}_images": len(part.labels), f"{name}_images_of_the_rarest_class": min(counts)}
        if absent := [spec.class_names[label] for label, count in enumerate(counts) if not count]:
            problems.append(f"{name} has no image of the classes {', '.join(absent)}")
    yield dg.AssetCheckResult(
        check_name="complete", passed=not problems, description="; ".join(problems) or None, metadata=numbers
    )
    yield class_sizes(raw_mnist_data)
    images = len(raw_mnist_data.train.labels) + len(raw_mnist_data.test.labels)
    yield dg.AssetCheckResult(
        check_name="full_data_set",
        passed=not raw_mnist_data.is_sample,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"only {images:,} images: {raw_mnist_data.description}" if raw_mnist_data.is_sample else None,
        metadata={"images": images},
    )


def class_sizes(raw_mnist_data: Dataset) -> dg.AssetCheckResult:
    """Compare the largest and the smallest class to train on."""
    from mnist_pipeline.ml.data import class_counts

    spec = raw_mnist_data.spec
    names, counts = spec.class_names, class_counts(raw_mnist_data.train.labels, spec)[: spec.classes]
    most, least = counts.index(max(counts)), counts.index(min(counts))
    alike = counts[most] <= MOST_TO_LEAST * counts[least]
    return dg.AssetCheckResult(
        check_name="class_sizes",
        passed=alike,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{names[most]} has {counts[most]:,} training images and {names[least]} only {counts[least]:,}"
        + ("" if alike else ": consider class_weights: balanced for digit_classifier"),
        metadata={"largest_class": counts[most], "smallest_class": counts[least]},
    )
