"""A table of the versions in a store: when, by which data, how good, and what was decided about each."""

from typing import NamedTuple

from mnist_pipeline.ml.manifest import PROMOTED, Decision
from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.errors import CorruptModel


class Row(NamedTuple):
    """A version in the table; fields are empty where nothing is known."""

    version: str
    created_at: str
    """UTC, to the second."""
    data: str
    """The beginning of the data version of the splits it was trained on."""
    validation_accuracy: float | None
    test_accuracy: float | None
    """It is 0..1, as it was measured when the gate last decided about it."""
    decision: str
    """The outcome of the last decision about it."""
    state: str
    """deployed, reference, waiting, rolled back, damaged, or none of them."""


def overview(store: ModelStore, limit: int | None = None) -> list[Row]:
    """Return a row for each version, the newest `limit` or all, newest first."""
    current, waiting = store.production(), store.waiting()
    states = {
        **({waiting.version: "waiting"} if waiting else {}),
        **({current.reference: "reference", current.version: "deployed"} if current else {}),
    }
    if current and current.reference == current.version:
        states[current.version] = "deployed, reference"
    about: dict[str, list[Decision]] = {}
    trail = store.decisions()  # newest first
    for decision in trail:
        about.setdefault(decision.version, []).append(decision)
    undone = {decision.replaces for decision in trail if decision.strategy == "rollback"}
    for name, decisions in about.items():
        if next((d.id for d in decisions if d.outcome == PROMOTED), None) in undone:
            states.setdefault(name, "rolled back")
    return [_row(store, name, states.get(name, ""), about.get(name, [])) for name in store.versions()[:limit]]


def _row(store: ModelStore, name: str, state: str, about: list[Decision]) -> Row:
    score = next((decision.test_accuracy for decision in about if decision.test_accuracy is not None), None)
    outcome = f"{about[0].outcome} ({about[0].strategy})" if about else ""
    try:
        training = store.manifest(name).training
    except CorruptModel:
        return Row(name, "", "", None, score, outcome, f"{state}, damaged".removeprefix(", "))
    return Row(
        name,
        f"{training.created_at:%Y-%m-%d %H:%M:%S}" if training.created_at else "",
        (training.data_version or "")[:8],
        training.best("validation_accuracy"),
        score,
        outcome,
        state,
    )
