"""Files at an address of any kind are written whole, read, and kept apart from secrets."""

from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pyarrow.parquet as pq
import pytest

from mnist_pipeline.files.cloud import StorageError, options, parse_address
from mnist_pipeline.files.storage import (
    delete,
    exists,
    is_in_memory,
    read_bytes,
    reading,
    storage_path,
    write_bytes,
    writing,
)
from mnist_pipeline.ml.inputs import find_inputs, inputs_digest, read_batches
from mnist_pipeline_tests.files.test_folders import place  # noqa: F401  (a fixture)
from mnist_pipeline_tests.task.examples import png


def test_a_file_is_written_and_read(place):  # noqa: F811
    path = place / "a" / "b.bin"
    assert not exists(path)
    with pytest.raises(FileNotFoundError):
        read_bytes(path)
    write_bytes(path, b"one")
    assert exists(path)
    assert exists(path.parent)
    assert read_bytes(path) == b"one"
    with reading(path) as file:
        file.seek(1)
        assert file.read() == b"ne"
    delete(path)
    assert not exists(path)


def test_a_large_object_comes_in_parts_and_never_of_two_contents(place, monkeypatch):  # noqa: F811
    monkeypatch.setattr("mnist_pipeline.files.storage.PART_BYTES", 300)
    for size in (0, 299, 300, 301, 1000):
        content = bytes(range(256)) * 4
        write_bytes(place / "large.bin", content[:size])
        with reading(place / "large.bin") as file:
            assert file.read() == content[:size]
    if isinstance(place, Path) or is_in_memory(place):
        return  # read where they are
    get = obstore.get

    def replaced_meanwhile(store: Any, key: str, **options: Any) -> Any:
        found = get(store, key, **options)
        if not options:
            obstore.put(store, key, b"new" * 500)
        return found

    monkeypatch.setattr(obstore, "get", replaced_meanwhile)
    with pytest.raises(OSError, match=r"large\.bin was replaced while it was read"), reading(place / "large.bin"):
        raise AssertionError("it was opened")


def test_a_file_that_is_not_finished_is_not_there(place):  # noqa: F811
    path = place / "table.bin"
    write_bytes(path, b"old")

    def fails() -> None:
        with writing(path) as file:
            file.write(b"half of the new")
            raise ConnectionError

    with pytest.raises(ConnectionError):
        fails()
    assert read_bytes(path) == b"old"
    with writing(path) as file:
        file.write(b"new")
    assert read_bytes(path) == b"new"


def test_inputs_of_all_kinds_are_predicted_from_it(place, small_dataset, spec):  # noqa: F811
    images = small_dataset.test.images[:3]
    write_bytes(place / "a.png", png(images[0]))
    with writing(place / "b.npy") as file:
        np.save(file, images)
    with writing(place / "c.npz") as file:
        np.savez(file, images=images)
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in images.shape)
    write_bytes(place / "d-ubyte", header + images.tobytes())
    write_bytes(place / "notes.txt", b"")
    inputs = find_inputs([place])
    batches: list[Any] = list(read_batches(inputs, spec, 100))
    assert [len(batch.images) for batch in batches] == [3, 3, 3, 1]
    assert {name.rpartition("/")[2] for batch in batches for name in batch.sources} == {
        "a.png",
        "b.npy",
        "c.npz:images",
        "d-ubyte",
    }
    assert all(np.array_equal(batch.images, images) for batch in batches[:3])
    digest = inputs_digest(inputs)
    assert inputs_digest(find_inputs([place])) == digest
    write_bytes(place / "a.png", png(images[1]))
    assert inputs_digest(find_inputs([place])) != digest
    single = find_inputs([place / "b.npy"])
    assert [file.name for file in single.files] == [str(place / "b.npy")]
    cut: list[Any] = list(read_batches(single, spec, 2))
    assert [len(batch.images) for batch in cut] == [2, 1]


def test_a_table_is_read_where_it_lies(place):  # noqa: F811
    import pyarrow as pa

    with writing(place / "t.parquet") as file:
        pq.write_table(pa.table({"a": list(range(1000))}), file)
    with (place / "t.parquet").open("rb") as file, pq.ParquetFile(file) as table:
        assert table.metadata.num_rows == 1000


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("/a/b", ("", "", "/a/b")),
        ("s3://bucket", ("s3", "bucket", "")),
        ("gs://bucket/a/b/", ("gs", "bucket", "a/b")),
        ("memory://", ("memory", "", "")),
    ],
)
def test_an_address_is_taken_apart(address, parts):
    assert parse_address(address) == parts


@pytest.mark.parametrize(
    "address",
    [
        "s3://user:secret@bucket/x",
        "az://c/x?sig=secret",
        "gs://secret@bucket",
        "http://user:secret@host",
        "memory://a@b",
    ],
)
def test_an_address_with_a_secret_in_it_is_refused_and_not_repeated(address):
    with pytest.raises(ValueError, match="must not hold a user, a password or a query") as refused:
        storage_path(address)
    assert "secret" not in str(refused.value)


def test_an_endpoint_with_a_password_is_refused_and_not_repeated(s3_bucket):
    with pytest.raises(ValueError, match="must not hold") as refused:
        options("s3", "https://user:secret@host")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("address", ["ftp://host/x", "s3://", "az:///x"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match=r"is neither a folder nor one of s3://, gs://|names no bucket"):
        storage_path(address)


def test_a_bucket_that_is_not_there_is_an_error(s3_bucket, s3_url, azure_container, google_bucket):
    for address in ("s3://not-there/x", "az://not-there/x", "gs://not-there/x"):
        path = storage_path(address, s3_url)
        for attempt in (lambda path=path: read_bytes(path), lambda path=path: write_bytes(path, b"1")):
            with pytest.raises(StorageError, match="not-there/x: there is no such bucket"):
                attempt()
