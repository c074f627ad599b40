"""The cost of what is done with a store does not grow with what happened before: requests counted at the primitives."""

import math
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mnist_pipeline.files.cloud import PAGE
from mnist_pipeline.ml.manifest import Decision
from mnist_pipeline.ml.records import Splits
from mnist_pipeline.ml.settings import DeploymentSettings
from mnist_pipeline.stores import MemoryModelStore, S3ModelStore
from mnist_pipeline.stores.cloud import CloudModelStore
from mnist_pipeline.stores.objects import prove_conditional_writes
from mnist_pipeline.stores.overview import overview
from mnist_pipeline.stores.trail import entry_name, key_of
from mnist_pipeline.stores.versions import MANIFEST, WEIGHTS
from mnist_pipeline_tests.stores.test_trail import made
from mnist_pipeline_tests.versions import decide_by_kept_labels

COUNTS: Counter[str] = Counter()
MIDNIGHT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def counted(monkeypatch) -> None:
    """Count the requests that the five primitives make; a listing makes one for each page that is asked for."""

    def counting(primitive: str) -> Callable[..., Any]:
        do = getattr(CloudModelStore, primitive)

        def counted(*arguments: Any) -> Any:
            COUNTS[primitive] += 1
            return do(*arguments)

        return counted

    for primitive in ("read_object", "create_object", "replace_object", "delete_object"):
        monkeypatch.setattr(CloudModelStore, primitive, counting(primitive))
    list_objects = CloudModelStore.list_objects

    def pages(self: CloudModelStore, prefix: str = "", after: str = "") -> Iterator[str]:
        COUNTS["list_objects"] += 1
        for number, key in enumerate(list_objects(self, prefix, after)):
            if number and number % PAGE == 0:
                COUNTS["list_objects"] += 1
            yield key

    monkeypatch.setattr(CloudModelStore, "list_objects", pages)


def requests(action, *arguments, **settings) -> int:
    COUNTS.clear()
    action(*arguments, **settings)
    return COUNTS.total()


def fill(store, like, decisions: int, versions: int = 0) -> None:
    """Past decisions and past versions, as the code writes them."""
    refused = made(store, like, "refused").model_dump() | {"sequence": 0}
    content = Decision(**refused).model_dump_json().encode()

    def write(number: int) -> None:
        when = MIDNIGHT + timedelta(seconds=number)
        past = Decision(**refused | {"id": f"past-{number:08d}", "decided_at": when})
        store.create_object(key_of(entry_name(past)), content)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(decisions)))
    for number in range(versions):
        name = f"mnist_cnn_20260101T{number // 3600:02d}{number // 60 % 60:02d}{number % 60:02d}.000Z_x_acc0.9"
        for file in (WEIGHTS, "predicted-x.labels", "decided/x"):
            store.create_object(f"{name}/{file}", b"")
        store.create_object(f"{name}/{MANIFEST}", like.model_copy(update={"name": name}).model_dump_json().encode())


def gate(store, candidate, splits: Splits, strategy: str = "quality") -> Decision:
    """Let the gate decide about a candidate, whose labels are kept; the requests of that alone are counted."""
    policy = DeploymentSettings(strategy=strategy, accuracy_threshold=0.5, max_regression=0.1, serve_check="off")
    return decide_by_kept_labels(store, candidate, splits, policy, before=COUNTS.clear)


@pytest.mark.parametrize(("decisions", "versions"), [(10, 10), (1_000, 10), (100_000, 1_000)])
def test_no_cost_grows_with_the_number_of_decisions(save_to, trained, splits, decisions, versions):
    store = MemoryModelStore(bucket=uuid.uuid4().hex)
    prove_conditional_writes(store)  # once a process, before its first promotion
    first, second, third, fourth = (save_to(store, trained.weights + b" " * number) for number in range(4))
    fill(store, first, decisions, versions)
    assert gate(store, first, splits).outcome == "promoted"
    assert COUNTS.total() <= 10
    promoted = gate(store, second, splits)
    assert (promoted.outcome, promoted.reference_version) == ("promoted", first.name)
    assert COUNTS.total() <= 10
    third_promoted = gate(store, third, splits)  # incumbent and reference are two by now
    assert len(third_promoted.comparisons) == 2
    assert COUNTS.total() <= 10, COUNTS
    assert gate(store, fourth, splits, "approval").outcome == "waiting"
    assert COUNTS.total() <= 10, COUNTS
    assert requests(store.production) == 1  # what a service asks every few seconds
    assert requests(store.state) == 1
    pages = math.ceil((4 * versions + 30) / PAGE) + 1
    assert requests(store.versions) <= pages + 1
    assert requests(overview, store, 20) <= pages + 3 + 3 * 24
    assert requests(store.decisions, limit=20) == 1 + 1 + min(20, decisions + 4)
    newest = store.decisions(limit=20)
    assert [getattr(entry, "sequence", None) for entry in newest[:4]] == [3, 3, 2, 1]
    assert len(newest) == min(20, decisions + 4)


def test_the_same_with_many_decisions_on_s3(s3_bucket, s3_url, save_to, trained, splits):
    store = S3ModelStore(bucket=s3_bucket, prefix="models", endpoint_url=s3_url)
    first, second = save_to(store), save_to(store, trained.weights + b" ")
    fill(store, first, decisions=2_500)
    gate(store, first, splits)
    gate(store, second, splits)
    assert COUNTS.total() <= 10
    assert requests(store.versions) == 2
    assert requests(store.decisions, limit=20) == 1 + 1 + 20
    assert len(store.decisions()) == 2_502
