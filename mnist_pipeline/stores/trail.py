"""The audit trail: every decision, kept for ever, in the order of the deployments and not of anybody's clock.

    decisions/<number>-<kind>-<time>-<id>.json

`number` is LAST less the number of the deployment, so that a listing gives the newest first; `kind` puts what was
decided against a deployment before the promotion that made it; `time` is inverted too. Decisions of earlier code, whose
keys begin with a date, come after all others in a listing, oldest first.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import NamedTuple

from pydantic import ValidationError

from mnist_pipeline.ml.manifest import PROMOTED, Decision
from mnist_pipeline.stores.errors import CorruptModel, ObjectMissing
from mnist_pipeline.stores.objects import ObjectStore
from mnist_pipeline.stores.versions import DECISIONS

LAST = 1_000_000_000
"""More deployments are not counted. Written in full length, its numbers come before the years of earlier keys."""

NUMBER_LENGTH, ID_LENGTH = len(str(LAST)), 8
NUMBERED = re.compile(rf"(?P<number>\d{{{NUMBER_LENGTH}}})-(?P<kind>[01])-")
PROMOTION, ANY_OTHER = "1", "0"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
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
    kind = PROMOTION if decision.outcome == PROMOTED else ANY_OTHER
    when = decision.decided_at if decision.decided_at.tzinfo else decision.decided_at.replace(tzinfo=UTC)
    microseconds = LAST_MICROSECOND - (when - EPOCH) // timedelta(microseconds=1)
    return (
        f"{LAST - min(decision.sequence, LAST):0{NUMBER_LENGTH}d}-{kind}-"
        f"{max(0, min(microseconds, LAST_MICROSECOND)):016d}-{decision.id[-ID_LENGTH:]}"
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


def require_promotion(store: ObjectStore, decision_id: str) -> Decision | None:
    """Return the promotion of an id, which something depends on; None if there is none.

    Raises CorruptModel if it is damaged.
    """
    entry = read_entry(store, decision_id)  # as earlier code named it
    if entry is None:
        numbered = (match for key in store.list_objects(DECISIONS) if (match := NUMBERED.match(_name_in(key))))
        promotions = (match.string for match in numbered if match["kind"] == PROMOTION)
        found = (name for name in promotions if name.endswith(decision_id[-ID_LENGTH:]))
        entry = next((entry for name in found if (entry := read_entry(store, name))), None)
    if isinstance(entry, Damaged):
        raise CorruptModel(
            f"{entry.key} is damaged ({entry.problem}), and what it says is needed: restore it, or delete it to go on "
            "without"
        )
    return entry


def newest_number(store: ObjectStore) -> int:
    """Return the number of the newest deployment in the trail; 0 where there is none with a number."""
    numbered = (match for key in store.list_objects(DECISIONS) if (match := NUMBERED.match(_name_in(key))))
    newest = next(numbered, None)
    return LAST - int(newest["number"]) if newest else 0


def _name_in(key: str) -> str:
    return key.removeprefix(DECISIONS).removesuffix(".json")


def read_trail(store: ObjectStore, head: Decision | None, limit: int | None = None) -> Iterator[Entry]:
    """Yield the newest `limit` decisions, or all, newest first.

    `head` is the decision that deployed what is deployed: a kill may have kept it out of the trail.
    """
    for name, entry in _read(store, islice(_names(store, head), limit)):
        if entry is not None:
            yield entry
        elif head and name == entry_name(head):
            yield head


def earlier_entries(store: ObjectStore, since: str) -> Iterator[Entry]:
    """Yield the decisions that earlier code made from a time on, newest first; a request where there are none.

    `since` is text as names of versions have it: no version was decided about before it was saved.
    """
    names = [_name_in(key) for key in store.list_objects(DECISIONS, after=f"{DECISIONS}{BEFORE_YEARS}")]
    yield from (entry for _, entry in _read(store, reversed([n for n in names if n >= since])) if entry is not None)


def _read(store: ObjectStore, names: Iterator[str]) -> Iterator[tuple[str, Entry | None]]:
    with ThreadPoolExecutor(READ_AT_A_TIME) as threads:
        while page := list(islice(names, READ_AT_A_TIME)):
            yield from zip(page, threads.map(lambda name: read_entry(store, name), page), strict=True)


def _names(store: ObjectStore, head: Decision | None) -> Iterator[str]:
    """The names of all entries, and of `head` where it belongs."""
    awaited = entry_name(head) if head else None
    earlier = []
    for key in store.list_objects(DECISIONS):
        if not key.endswith(".json"):
            continue
        name = _name_in(key)
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
