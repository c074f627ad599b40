"""Stores that ignore conditions are refused; networks that fail are ridden out, or told, and never move the pointer."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from mnist_pipeline.stores import ModelStoreError, NothingDeployed, S3ModelStore
from mnist_pipeline.stores.errors import ObjectChanged
from mnist_pipeline.stores.objects import prove_conditional_writes
from mnist_pipeline_tests import clouds
from mnist_pipeline_tests.stores.test_trail import made

IF_MATCH, IF_NONE_MATCH = "if-match", "if-none-match"


@pytest.fixture
def behind(s3_url: str, s3_bucket: str) -> Iterator[Callable[..., S3ModelStore]]:
    """Makes stores behind a proxy that strips headers, or lets go wrong what it is told to."""
    with ExitStack() as proxies:

        def behind(fault: clouds.Fault = lambda method, path: None, strip: tuple[str, ...] = (), **settings):
            url = proxies.enter_context(clouds.faulty(s3_url, fault, strip))
            return S3ModelStore(bucket=s3_bucket, prefix="some/models", endpoint_url=url, **settings)

        yield behind


@pytest.fixture
def direct(s3_url: str, s3_bucket: str) -> S3ModelStore:
    """The same store without the proxy."""
    return S3ModelStore(bucket=s3_bucket, prefix="some/models", endpoint_url=s3_url)


class Once:
    """Goes wrong in one way at the first `times` requests of a method to an object, once it is armed."""

    def __init__(self, wrong: str, method: str, key: str, times: int = 1) -> None:
        self.wrong, self.method, self.key, self.left = wrong, method, key, times
        self.armed = False

    def __call__(self, method: str, path: str) -> str | None:
        if self.armed and self.left and method == self.method and path.partition("?")[0].endswith(self.key):
            self.left -= 1
            return self.wrong
        return None


@pytest.mark.parametrize(
    ("ignored", "named"),
    [((IF_MATCH,), "If-Match"), ((IF_NONE_MATCH,), "If-None-Match"), ((IF_MATCH, IF_NONE_MATCH), "If-None-Match")],
)
def test_a_store_that_ignores_conditions_is_refused_before_it_loses_a_promotion(behind, save_to, ignored, named):
    """Four promoters, as those who found it: none is told that it promoted."""
    store = behind(strip=ignored)
    manifests = [save_to(store) for _ in range(4)]

    def promote(manifest) -> str:
        with pytest.raises(ModelStoreError) as refused:
            store.promote(made(store, manifest))
        return str(refused.value)

    with ThreadPoolExecutor(4) as threads:
        said = set(threads.map(promote, manifests))
    assert len(said) == 1
    assert f"s3://{store.bucket}/some/models ignores the condition" in said.pop()
    with pytest.raises(ModelStoreError, match=rf"\({named}\).*Keep the models in a folder, or in a store"):
        store.prune(keep=1)
    assert store.production() is None
    assert len(store.versions()) == 4
    assert [key for key in store.list_objects() if not key.startswith(tuple(m.name for m in manifests))] == []


def test_a_store_is_tried_once_a_process_and_not_by_those_who_only_read(behind, save_to):
    seen: list[tuple[str, str]] = []
    store = behind(lambda method, path: seen.append((method, path)))
    manifest = save_to(store)
    assert store.production() is None
    assert store.versions() == [manifest.name]
    assert not [path for _, path in seen if "/.proofs/" in path]
    store.promote(made(store, manifest))
    store.record(made(store, manifest, "waiting"))
    proofs = [method for method, path in seen if "/.proofs/" in path]
    assert proofs == ["PUT"] * 4  # the fifth request, a deletion, is one of many keys


@pytest.mark.parametrize("wrong", ["503", "429", "reset", "lost"])
@pytest.mark.parametrize(
    ("method", "key"),
    [("GET", "production.json"), ("PUT", "production.json"), ("PUT", "manifest.json"), ("PUT", ".json")],
)
def test_a_fault_that_passes_is_ridden_out(behind, direct, save_to, wrong, method, key):
    """Also an answer that was lost after the write had happened: it is no conflict, and nothing is done twice."""
    fault = Once(wrong, method, key)
    store = behind(fault)
    first = save_to(store)
    store.promote(made(store, first))
    fault.armed = True
    second = save_to(store)
    store.promote(promoted := made(store, second))
    store.record(refused := made(store, first, "refused"))
    assert fault.left == 0
    assert direct.production() == promoted
    assert [entry.id for entry in direct.decisions()][:2] == [refused.id, promoted.id]
    assert len(direct.decisions()) == 3
    assert direct.versions() == [second.name, first.name]
    direct.verify(second.name)


@pytest.mark.parametrize("wrong", ["503", "reset", "silent"])
def test_a_fault_that_stays_is_told_and_changes_nothing(behind, direct, save_to, wrong):
    fault = Once(wrong, "PUT", "production.json", times=1000)
    store = behind(fault, max_attempts=2, timeout_seconds=1)
    first, second = save_to(store), save_to(store)
    store.promote(promoted := made(store, first))
    fault.armed = True
    with pytest.raises(ModelStoreError, match=r"^s3://.*Check the name of the bucket, the credentials"):
        store.promote(made(store, second))
    assert direct.production() == promoted
    assert len(direct.decisions()) == 1
    fault.armed = False
    store.promote(again := made(store, second))
    assert direct.production() == again


def test_an_answer_lost_for_good_leaves_a_whole_trail(behind, direct, save_to):
    """The write happened, the client heard nothing: production is the new one, and the trail has it."""
    fault = Once("lost", "PUT", "production.json", times=1000)
    store = behind(fault, max_attempts=1)
    first, second = save_to(store), save_to(store)
    store.promote(made(store, first))
    fault.armed = True
    with pytest.raises(ModelStoreError):
        store.promote(lost := made(store, second))
    assert direct.production() == lost
    assert [entry.version for entry in direct.decisions()] == [second.name, first.name]
    direct.rollback("what was that", "me")
    assert [entry.sequence for entry in direct.decisions()] == [3, 2, 1]


def test_a_reader_needs_no_right_to_write(behind, direct, save_to):
    manifest = save_to(direct)
    direct.promote(made(direct, manifest))
    reader = behind(lambda method, path: None if method in ("GET", "HEAD") else "503", max_attempts=1)
    assert reader.production().version == manifest.name
    assert reader.load(manifest.name)[0] == manifest
    assert reader.state().waiting is None
    with pytest.raises(ModelStoreError):
        prove_conditional_writes(reader)


def test_a_promotion_whose_answer_was_lost_and_that_was_replaced_since_is_no_conflict(direct, save_to, monkeypatch):
    manifests = [save_to(direct) for _ in range(2)]
    replace = S3ModelStore.create_object

    def lost(self, key: str, data: bytes) -> str:
        token = replace(self, key, data)
        if key != "production.json":
            return token
        monkeypatch.setattr(S3ModelStore, "create_object", replace)
        direct.promote(made(direct, manifests[1]))
        raise ObjectChanged(key)  # what the automatic retry of a client hears

    first = made(direct, manifests[0])
    prove_conditional_writes(direct)
    monkeypatch.setattr(S3ModelStore, "create_object", lost)
    direct.promote(first)
    assert [entry.version for entry in direct.decisions()] == [manifests[1].name, manifests[0].name]


def test_a_profile_that_is_not_there_is_told(direct, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "nonsense")
    with pytest.raises(ModelStoreError, match=r"boto3 says: .*nonsense"):
        direct.versions()


def test_nothing_deployed_is_no_fault(direct):
    with pytest.raises(NothingDeployed):
        direct.rollback("why", "me")
