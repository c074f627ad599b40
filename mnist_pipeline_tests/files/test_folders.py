"""The one walker: which files count is the same for watching, reading and predicting, on every kind of place."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from mnist_pipeline.files import folders
from mnist_pipeline.files.folders import HIDDEN, walk
from mnist_pipeline.files.storage import delete, storage_path, write_bytes
from mnist_pipeline.ml.inputs import find_inputs, read_batches
from mnist_pipeline.ml.labelled import read_labelled
from mnist_pipeline.ml.records import InputError
from mnist_pipeline_tests.task.examples import png


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def test_regular_files_count_and_the_rest_is_named(root, tmp_path):
    (root / "7").mkdir()
    (root / "7" / "a.png").write_bytes(b"1")
    (root / ".staging").mkdir()
    (root / ".staging" / "b.png").write_bytes(b"half")
    (root / "7" / ".tmp-c.png").write_bytes(b"half")
    os.mkfifo(root / "7" / "pipe.png")
    (root / "7" / "null.png").symlink_to("/dev/null")
    (root / "7" / "dangling.png").symlink_to(root / "nowhere")
    (root / "7" / "circle.png").symlink_to(root / "7" / "circle.png")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
        found = walk(root)
    assert list(found.files) == ["7/a.png"]
    assert found.left_out == {
        ".staging": HIDDEN,
        "7/.tmp-c.png": HIDDEN,
        "7/pipe.png": "not a regular file",
        "7/null.png": "a link to somewhere outside the folder",
        "7/dangling.png": "a link to nothing",
        "7/circle.png": "a link to nothing",
        "socket": "not a regular file",
    }


@pytest.mark.parametrize(
    ("links", "files", "left_out"),
    [
        ("inside", ["a.png", "in.png"], {"out": "outside", "out.png": "outside", "again": "walked anyway"}),
        ("anywhere", ["a.png", "in.png", "out.png", "out/b.png"], {"again": "walked anyway"}),
        ("never", ["a.png"], dict.fromkeys(("in.png", "out", "out.png", "again"), "none is followed")),
    ],
)
def test_links_are_followed_as_the_setting_says(root, tmp_path, links, files, left_out):
    (root / "a.png").write_bytes(b"1")
    (root / "in.png").symlink_to(root / "a.png")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.png").write_bytes(b"2")
    (root / "out.png").symlink_to(tmp_path / "other" / "b.png")
    (root / "out").symlink_to(tmp_path / "other")
    (root / "again").symlink_to(root)
    found = walk(root, links)
    assert list(found.files) == files
    assert found.left_out.keys() == left_out.keys()
    assert all(left_out[name] in why for name, why in found.left_out.items())


def test_a_link_to_a_device_counts_nowhere(root):
    (root / "zero.png").symlink_to("/dev/zero")
    assert walk(root, "anywhere").left_out == {"zero.png": "not a regular file"}


def test_every_name_of_the_file_system_is_walked_read_and_predicted(root, small_dataset, spec):
    names = [b"7/\xff\xfe.png", "7/ä ö#?%41.png".encode(), b"7/new\nline.png", b"7/[1].png", b"7/~.png", b"7/a\\b.png"]
    (root / "7").mkdir()
    for name, image in zip(names, small_dataset.test.images, strict=False):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(png(image))
    found = walk(root)
    assert sorted(map(os.fsencode, found.files)) == sorted(names)
    before = folders.digest(root, found)
    assert len(folders.fingerprint(found)) == len(before) == 64
    labelled = read_labelled(UPath(root), spec)
    assert (len(labelled.images.labels), labelled.skipped) == (len(names), {})
    [batch] = list[Any](read_batches(find_inputs([root]), spec, 100))
    assert len(batch.sources) == len(names)
    "".join(batch.sources).encode()  # no half of a character is left
    Path(os.fsdecode(os.fsencode(root) + b"/" + names[0])).unlink()
    assert folders.digest(root, walk(root)) != before


def test_what_is_being_written_is_not_predicted(root, small_dataset, spec):
    (root / ".staging").mkdir()
    (root / ".staging" / "a.png").write_bytes(png(small_dataset.test.images[0]))
    inputs = find_inputs([root])
    assert inputs.files == []
    assert list(inputs.left_out.values()) == [HIDDEN]


def test_a_pipe_that_is_named_itself_is_an_error_and_waits_for_nobody(root, spec):
    os.mkfifo(root / "pipe.png")
    [error] = read_batches(find_inputs([root / "pipe.png"]), spec, 10)
    assert isinstance(error, InputError)
    assert "not a regular file" in error.error


def test_a_file_too_large_for_a_picture_is_not_read(root, small_dataset, spec):
    (root / "7").mkdir()
    with (root / "7" / "huge.png").open("wb") as file:
        file.truncate(200 << 20)
    assert "more than 104,857,600" in read_labelled(UPath(root), spec).skipped["7/huge.png"]
    [error] = read_batches(find_inputs([root]), spec, 10)
    assert isinstance(error, InputError) and "more than 104,857,600" in error.error


def test_a_folder_that_may_not_be_listed_is_named(root, monkeypatch):
    (root / "secret").mkdir()
    scan = os.scandir

    def refused(path):
        if Path(path).name == "secret":  # root, who runs tests in containers, may list everything
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(folders.os, "scandir", refused)
    assert walk(root).left_out == {"secret": "cannot be listed: Permission denied"}


def test_a_time_beyond_all_calendars_is_a_time(root):
    (root / "a.png").write_bytes(b"1")
    try:
        os.utime(root / "a.png", (1e12, 1e12))
    except OSError:
        pytest.skip("this file system has no such times")
    assert list(walk(root).files) == ["a.png"]


def test_a_file_that_goes_away_before_it_is_read_fails_nothing(root):
    (root / "a.png").write_bytes(b"1")
    found = walk(root)
    (root / "a.png").unlink()
    assert len(folders.digest(root, found)) == 64


def test_a_root_that_is_a_link_to_itself_is_empty(tmp_path):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert walk(tmp_path / "circle").files == {}


def test_an_absent_folder_equals_an_empty_one(tmp_path):
    assert walk(tmp_path / "absent") == walk(tmp_path) == ({}, {})


@pytest.fixture(params=["local", "memory", "s3", "azure", "google"])
def place(request, tmp_path) -> UPath:
    """An empty folder of each kind."""
    match request.param:
        case "local":
            return storage_path(str(tmp_path / "some" / "folder"))
        case "memory":
            return storage_path(f"memory://{tmp_path.name}/folder")
        case "s3":
            url = request.getfixturevalue("s3_url")
            return storage_path(f"s3://{request.getfixturevalue('s3_bucket')}/some/folder", url)
        case "azure":
            return storage_path(f"az://{request.getfixturevalue('azure_container')}/some/folder")
        case _:
            return storage_path(f"gs://{request.getfixturevalue('google_bucket')}/some/folder")


def test_changes_of_files_are_seen_at_every_kind_of_place(place):
    assert walk(place) == ({}, {})
    write_bytes(place / "7" / "a.png", b"one")
    write_bytes(place / ".staging" / "b.png", b"half")
    first = walk(place)
    assert list(first.files) == ["7/a.png"]
    assert first.files["7/a.png"].size == 3
    assert list(first.left_out.values()) == [HIDDEN]
    version = folders.digest(place, first)
    write_bytes(place / "7" / "a.png", b"two")  # of the same size
    second = walk(place)
    assert folders.digest(place, second) != version
    if first.files["7/a.png"].tag:  # where times are all there is, two writes may have the same
        assert folders.fingerprint(second) != folders.fingerprint(first)
    write_bytes(place / "7" / "a.png", b"one")
    if not str(place).startswith(("az://", "gs://")):  # there the tag changes with each writing
        assert folders.digest(place, walk(place)) == version
    delete(place / "7" / "a.png")
    delete(place / "7" / "a.png")
    assert walk(place).files == {}


def test_the_folder_that_a_console_makes_is_no_file(s3_bucket, s3_url):
    import boto3

    client = boto3.client("s3", endpoint_url=s3_url)
    for key in ("labelled/", "labelled/7/", "labelled/7/a.png"):
        client.put_object(Bucket=s3_bucket, Key=key, Body=b"x" if key.endswith("png") else b"")
    assert list(walk(storage_path(f"s3://{s3_bucket}/labelled", s3_url)).files) == ["7/a.png"]


def test_a_name_that_cannot_be_listed_is_an_error_that_says_what_to_do(s3_bucket, s3_url):
    import boto3

    boto3.client("s3", endpoint_url=s3_url).put_object(Bucket=s3_bucket, Key="labelled/7//a.png", Body=b"x")
    with pytest.raises(OSError, match=r"labelled/7//a\.png.*Rename or remove that object"):
        walk(storage_path(f"s3://{s3_bucket}/labelled", s3_url))
