"""The way from a step to the people who look at images: the page /review of the service."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import dagster as dg

from mnist_pipeline.defs.resources.folders import ReviewResource

if TYPE_CHECKING:
    from mnist_pipeline.ml.review_items import ReviewItem

MOST_TO_REVIEW = 50
"""The most doubtful labels that a step sends at a time."""


def to_review(
    context: dg.AssetExecutionContext, review_dir: ReviewResource, items: "Iterable[ReviewItem]", most: int
) -> "dict[str, dg.RawMetadataValue]":
    """Have the first `most` of the items shown on /review, and return the metadata that says so.

    A step does not fail for a place that cannot be written now: what it is for is done by then.
    """
    try:
        return {"sent_to_review": review_dir.queue().put(items, most)}
    except OSError as error:
        context.log.warning("nothing can be sent to /review now: %s", error)
        return {"not_sent_to_review": str(error)}


def held_back(context: dg.AssetExecutionContext, review_dir: ReviewResource) -> "dict[str, dg.RawMetadataValue]":
    """Return metadata that says how many labels wait on /review until somebody confirms them."""
    try:
        return {"labels_held_back": review_dir.queue().count_held()}
    except OSError as error:
        context.log.warning("it cannot be told how many labels are held back: %s", error)
        return {}
