"""The audit trail: every decision, kept for ever, in the order of the deployments and not of anybody's clock.

    decisions/<number>-<kind>-<time>-<id>.json

`number` is LAST less the number of the deployment, so that a listing gives the newest first; `kind` puts what was
decided against a deployment before the promotion that made it; `time` is inverted too. Decisions of earlier code, whose
keys begin with a date, come after all others in a listing, oldest first.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

from pydantic import ValidationError

from mnist_pipeline.ml.manifest import PROMOTED, Decision
from mnist_pipeline.stores.errors import CorruptModel, ObjectMissing
from mnist_pipeline.stores.objects import ObjectStore
from mnist_pipeline.stores.versions import DECISIONS

LAST = 1_000_000_000
"""More deployments are not counted. Written in full length, its numbers come before the years of earlier keys."""

LAST_MICROSECOND = 9_999_999_999_999_999

EARLIER = re.compile(r"\d{8}T")
"""The beginning of a key of earlier code."""

BEFORE_YEARS = "2"
"""A text that comes after all keys with a number, and before those with a date."""

READ_AT_A_TIME = 16
"""Requests in flight: reading decisions one after the other waits for the network most of the time."""


class Damaged(NamedTuple):
    """An entry of the audit trail that cannot be read."""

    key: str
    problem: str


Entry = Decision | Damaged
"""An entry of the audit trail."""


def entry_name(decision: Decision) -> str:
    """Return the name of a decision in the trail."""
    if decision.sequence is None:
        return decision.id
    kind = 1 if decision.outcome == PROMOTED else 0
    microseconds = LAST_MICROSECOND - int(decision.decided_at.timestamp() * 1e6)
    return (
        f"{LAST - min(decision.sequence, LAST):010d}-{kind}-{max(0, min(microseconds, LAST_MICROSECOND)):016d}-"
        f"{decision.id[-8:]}"
    )


def key_of(name: str) -> str:
    """Return the key of an entry."""
    return f"{DECISIONS}{name}.json"


def read_entry(store: ObjectStore, name: str) -> Entry | None:
    """Return an entry of the trail; None if there is none of this name."""
    try:
        data, _ = store.read_object(key_of(name))
        return Decision.model_validate_json(data)
    except ObjectMissing:
        return None
    except ValidationError as error:
        return Damaged(key_of(name), f"{error.error_count()} errors, the first: {error.errors()[0]['msg']}")


def require_entry(store: ObjectStore, name: str) -> Decision | None:
    """Return an entry that something depends on; None if there is none. Raises CorruptModel if it is damaged."""
    entry = read_entry(store, name)
    if isinstance(entry, Damaged):
        raise CorruptModel(
            f"{entry.key} is damaged ({entry.problem}), and what it says is needed: restore it, or delete it to go on "
            "without"
        )
    return entry


def read_trail(store: ObjectStore, head: Decision | None, limit: int | None = None) -> Iterator[Entry]:
    """Yield the newest `limit` decisions, or all, newest first.

    `head` is the decision that deployed what is deployed: a kill may have kept it out of the trail.
    """
    for name, entry in _read(store, islice(_names(store, head), limit)):
        if entry is not None:
            yield entry
        elif head and name == entry_name(head):
            yield head


def earlier_entries(store: ObjectStore) -> Iterator[Entry]:
    """Yield the decisions that earlier code wrote, newest first; a request where there are none."""
    keys = store.list_objects(DECISIONS, after=f"{DECISIONS}{BEFORE_YEARS}")
    names = [key.removeprefix(DECISIONS).removesuffix(".json") for key in keys]
    yield from (entry for _, entry in _read(store, reversed(names)) if entry is not None)


def _read(store: ObjectStore, names: Iterator[str]) -> Iterator[tuple[str, Entry | None]]:
    with ThreadPoolExecutor(READ_AT_A_TIME) as threads:
        while page := list(islice(names, READ_AT_A_TIME)):
            yield from zip(page, threads.map(lambda name: read_entry(store, name), page), strict=True)


def _names(store: ObjectStore, head: Decision | None) -> Iterator[str]:
    """The names of all entries, and of `head` where it belongs."""
    awaited = entry_name(head) if head else None
    earlier = []
    for key in store.list_objects(DECISIONS):
        name = key.removeprefix(DECISIONS).removesuffix(".json")
        if EARLIER.match(name):
            earlier.append(name)
            continue
        if awaited and awaited < name and not EARLIER.match(awaited):
            yield awaited
            awaited = None
        awaited = None if name == awaited else awaited
        yield name
    if awaited and awaited not in earlier:
        earlier.append(awaited)
    yield from reversed(earlier)
