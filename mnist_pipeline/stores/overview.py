"""A table of the versions in a store: when, by which data, how good, and what was decided about each."""

from itertools import islice
from typing import NamedTuple

from mnist_pipeline.ml.manifest import Decision
from mnist_pipeline.ml.records import Digests
from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.errors import CorruptModel, UnknownModel
from mnist_pipeline.stores.objects import NAMED_SWEEPS
from mnist_pipeline.stores.state import State
from mnist_pipeline.stores.trail import earlier_entries
from mnist_pipeline.stores.versions import complete_versions, time_in

DECISIONS_READ = 5
"""More decisions about a version are not looked through for a test accuracy."""


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


class Overview(NamedTuple):
    """The rows of the newest versions."""

    rows: list[Row]
    versions: int
    """The number of all versions."""


def overview(store: ModelStore, limit: int | None = None) -> Overview:
    """Return a row for each version, newest first: of the newest `limit` and of those that are in use, or of all."""
    state, found = store.state(), store.version_files()
    versions = complete_versions(found)
    shown = [
        name for position, name in enumerate(versions) if limit is None or position < limit or name in state.in_use
    ]
    before = list(earlier_entries(store, min(map(time_in, shown), default="")))
    rows = []
    for name in shown:
        about = list(islice(store.decisions_about(name, found[name], before), DECISIONS_READ))
        try:
            rows.append(_row(store, name, state, about))
        except UnknownModel:  # pruned since it was listed
            continue
    return Overview(rows, len(versions))


def sweep_names(store: ModelStore) -> list[str]:
    """Return the names of all sweeps, the one that was started last at first; a request for a thousand of them."""
    named = [key.removeprefix(NAMED_SWEEPS).partition("_")[2] for key in store.list_objects(NAMED_SWEEPS)]
    return list(dict.fromkeys(reversed(named)))  # a start that failed, and went on later, has two


def words_of(name: str, digests: Digests | None, state: State) -> list[str]:
    """Return what a version is now: deployed, reference, waiting, rolled back. Of a damaged one `digests` is None."""
    deployed, words = state.deployed, []
    words += ["deployed"] if deployed and name == deployed.version else []
    words += ["reference"] if deployed and name == deployed.reference else []
    words += ["waiting"] if state.waiting and name == state.waiting.version else []
    words += ["rolled back"] if digests and state.rolled_back_because(digests) and not words else []
    return words


def _row(store: ModelStore, name: str, state: State, about: list[Decision]) -> Row:
    score = next((decision.test_accuracy for decision in about if decision.test_accuracy is not None), None)
    outcome = f"{about[0].outcome} ({about[0].strategy})" if about else ""
    try:
        manifest = store.manifest(name)
    except CorruptModel:
        return Row(name, "", "", None, score, outcome, ", ".join([*words_of(name, None, state), "damaged"]))
    words = words_of(name, manifest.digests, state)
    training = manifest.training
    return Row(
        name,
        f"{training.created_at:%Y-%m-%d %H:%M:%S}" if training.created_at else "",
        (training.data_version or "")[:8],
        training.best("validation_accuracy"),
        score,
        outcome,
        ", ".join(words),
    )
