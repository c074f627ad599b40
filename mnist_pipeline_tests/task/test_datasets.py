"""Data sets by their names: what is read, and what is downloaded, beside torchvision."""

import contextlib
import hashlib
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from mnist_pipeline.environment import Environment, EnvironmentInvalid
from mnist_pipeline.files.arrays import read_idx
from mnist_pipeline.files.errors import DataError
from mnist_pipeline.task import download
from mnist_pipeline.task.dataset import DatasetSettings
from mnist_pipeline.task.download import DownloadError
from mnist_pipeline.task.known import FILES, known, known_names, least_accuracy
from mnist_pipeline.task.sources import load_dataset
from mnist_pipeline_tests.task.others import write_idx
from mnist_pipeline_tests.task.shapes import idx

OTHERS = [name for name in known_names() if name != "mnist"]
DEAD = ["http://127.0.0.1:9/"]


def asked(name: str, directory: Path, source: str = "auto") -> DatasetSettings:
    return DatasetSettings(dataset=name, source=source, directory=str(directory))


@pytest.mark.parametrize("name", known_names())
def test_classes_and_addresses_are_torchvisions(name):
    data_set = known(name)
    described = getattr(datasets, data_set.torchvision)
    if data_set.archive is None:
        assert list(data_set.mirrors) == described.mirrors
        assert [f"{file}.gz" for file in data_set.files] == [file for file, _ in described.resources]
        classes = [text.split(" - ")[0] for text in described.classes]
    else:
        assert f"{data_set.mirrors[0]}{data_set.archive.parts[0]}" == described.url
        classes = [name for name in described.classes_split_dict[name.removeprefix("emnist_")] if name != "N/A"]
    assert list(data_set.class_names) == classes


@pytest.mark.parametrize("name", OTHERS)
def test_a_data_set_is_read_upright_with_labels_from_0_and_its_own_scale(name, tmp_path):
    write_idx(tmp_path, name, train=4, test=2)
    dataset, data_set = load_dataset(asked(name, tmp_path)), known(name)
    classes = len(data_set.class_names)
    assert dataset.spec.name == name
    assert np.bincount(dataset.train.labels).tolist() == [4] * classes
    assert np.bincount(dataset.test.labels).tolist() == [2] * classes
    stored = read_idx(tmp_path / f"{data_set.files[0]}.gz")
    expected = np.stack([image.T for image in stored]) if data_set.transposed else stored
    assert np.array_equal(dataset.train.images, expected)
    values = dataset.train.images / 255
    assert (*dataset.spec.mean, *dataset.spec.std) == pytest.approx((values.mean(), values.std()), abs=1e-4)


def test_emnist_looks_as_torchvision_says_it_is_to_be_turned(tmp_path):
    """Its pictures have to be transposed, see pytorch/vision issue 2630."""
    write_idx(tmp_path / "EMNIST" / "raw", "emnist_letters", train=4, test=2)
    ours = load_dataset(asked("emnist_letters", tmp_path)).train
    for file in known("emnist_letters").files:
        path = tmp_path / "EMNIST" / "raw" / file
        array = read_idx(path.with_name(f"{file}.gz"))
        path.write_bytes(idx(array))
    theirs = datasets.EMNIST(str(tmp_path), split="letters", train=True)
    assert np.array_equal(ours.images, theirs.data.numpy().swapaxes(1, 2))
    assert np.array_equal(ours.labels, theirs.targets.numpy() - 1)


def test_a_label_before_the_first_is_refused(tmp_path):
    write_idx(tmp_path, "emnist_letters", train=4, test=2)
    file = tmp_path / f"{known('emnist_letters').files[1]}.gz"
    labels = read_idx(file)
    labels[0] = 0
    file.unlink()
    file.with_suffix("").write_bytes(idx(labels))
    with pytest.raises(DataError, match=r"labels must be in 0\.\.25"):
        load_dataset(asked("emnist_letters", tmp_path))


def test_where_there_is_no_sample_nothing_stands_in(tmp_path):
    with pytest.raises(DataError, match="there is no sample of fashion_mnist"):
        load_dataset(asked("fashion_mnist", tmp_path, "sample"))
    with pytest.raises(DownloadError, match=r"http://127\.0\.0\.1:9/train-images"):
        load_dataset(asked("fashion_mnist", tmp_path), DEAD)
    with pytest.raises(DataError, match=r"no files of fashion_mnist .* Set DATASET_DIR"):
        load_dataset(asked("fashion_mnist", tmp_path, "directory"))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """A folder, the URL of a web server that has its files, and what was asked for."""
    folder, requests = tmp_path / "mirror", list[str]()
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            requests.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, [f"http://127.0.0.1:{server.server_address[1]}/"], requests
    server.shutdown()
    server.server_close()


def test_four_files_are_downloaded(served, tmp_path, monkeypatch):
    folder, mirrors, requests = served
    write_idx(folder, "kmnist", train=4, test=2)
    digests = [(file.name, hashlib.md5(file.read_bytes()).hexdigest()) for file in folder.iterdir()]
    monkeypatch.setattr(datasets.KMNIST, "resources", digests)
    assert len(load_dataset(asked("kmnist", tmp_path / "raw"), mirrors).train.labels) == 40
    load_dataset(asked("kmnist", tmp_path / "raw", "download"), mirrors)
    assert len(requests) == 4


def test_a_mirror_that_drips_is_given_up(tmp_path, monkeypatch):
    """Each byte comes in time, but the file never does."""
    monkeypatch.setattr(download, "MAX_SECONDS", 0.2)
    done = threading.Event()

    class Drip(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while not done.wait(0.01):
                    self.wfile.write(b"x")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Drip)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(DownloadError, match=r"it did not arrive within 0\.2 s.*put train-images-idx3-ubyte.* into"):
            load_dataset(asked("fashion_mnist", tmp_path), [f"http://127.0.0.1:{server.server_address[1]}/"])
    finally:
        done.set()
        server.shutdown()
        server.server_close()


def zipped(folder: Path, monkeypatch: pytest.MonkeyPatch, leave_out: str = "nothing") -> Path:
    """EMNIST's archive, with the letters only."""
    write_idx(folder / "files", "emnist_letters", train=4, test=2)
    with zipfile.ZipFile(folder / "gzip.zip", "w") as archive:
        for file in (folder / "files").iterdir():
            if leave_out not in file.name:
                archive.write(file, f"gzip/{file.name}")
    digest = hashlib.md5((folder / "gzip.zip").read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.EMNIST, "md5", digest)
    return folder / "gzip.zip"


def test_an_archive_is_downloaded_once_and_not_kept(served, tmp_path, monkeypatch):
    folder, mirrors, requests = served
    zipped(folder, monkeypatch)
    target = tmp_path / "raw"
    assert len(load_dataset(asked("emnist_letters", target), mirrors).train.labels) == 104
    assert requests == ["/gzip.zip"]
    assert sorted(file.name for file in target.iterdir()) == sorted(
        f"{file}.gz" for file in known("emnist_letters").files
    )
    load_dataset(asked("emnist_letters", target, "download"), mirrors)
    assert len(requests) == 1


@pytest.mark.parametrize("damage", ["truncated", "another", "a file is missing"])
def test_an_archive_that_is_not_the_one_is_refused(served, tmp_path, monkeypatch, damage):
    folder, mirrors, _ = served
    archive = zipped(folder, monkeypatch, "test-labels" if damage == "a file is missing" else "nothing")
    data = archive.read_bytes()
    if damage != "a file is missing":
        archive.write_bytes(data[:-50] if damage == "truncated" else b"x" + data[1:])
    expected = "is not the archive that it should be" if damage == "a file is missing" else "expected MD5"
    with pytest.raises(DownloadError, match=expected):
        load_dataset(asked("emnist_letters", tmp_path / "raw"), mirrors)
    assert not (tmp_path / "raw" / known("emnist_letters").files[3]).with_suffix(".gz").exists()


def test_the_threshold_that_suits_a_data_set():
    assert least_accuracy("mnist", np.zeros(1)) == 0.95
    assert 0.7 < least_accuracy("emnist_balanced", np.zeros(1)) < 0.95
    assert least_accuracy("pets", np.arange(100) % 2) == 0.75
    assert least_accuracy("pets", np.arange(120)) == pytest.approx(2 / 120)
    assert least_accuracy("pets", np.array([0] * 90 + [1] * 10)) == pytest.approx(0.95)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "mnist", "image_size": (64, 64)}, "image_size has an effect only with the data set 'folder'"),
        ({"dataset": "kmnist", "name": "x"}, "name has an effect only"),
        ({"dataset": "folder", "source": "download"}, "the source 'download' has no effect"),
        ({"dataset": "folder", "image_size": (0, 64)}, r"image_size must be in 1\.\.4096"),
        ({"dataset": "folder", "image_channels": 2}, "1 or 3"),
        ({"dataset": "cifar"}, "fashion_mnist, kmnist, mnist, folder, not 'cifar'"),
    ],
)
def test_what_would_be_ignored_or_is_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DatasetSettings(**settings)


def test_a_data_set_of_ones_own_is_a_file_that_is_found_by_its_name(tmp_path, monkeypatch):
    """Four IDX files of another shape, and nothing else is changed."""
    (tmp_path / "known").mkdir()
    (tmp_path / "known" / "stamps.py").write_text(
        "from mnist_pipeline.task.known import Known\n"
        "DATA_SET = Known(('red', 'blue'), 0.6, image_shape=(8, 9, 1), pictures='cutouts')\n"
    )
    monkeypatch.setattr("mnist_pipeline.task.known.__path__", [str(tmp_path / "known")])
    raw = tmp_path / "raw"
    raw.mkdir()
    images, labels = np.arange(4 * 72, dtype=np.uint8).reshape(4, 8, 9), np.array([0, 1, 0, 1], np.uint8)
    for file, array in zip(FILES, (images, labels, images[:2], labels[:2]), strict=True):
        (raw / file).write_bytes(idx(array))
    environment = Environment.read({"DATASET": "stamps", "DATASET_DIR": str(raw), "STORAGE_ROOT": str(tmp_path)})
    dataset = load_dataset(environment.dataset_settings())
    assert (dataset.spec.name, dataset.spec.image_shape, dataset.spec.pictures) == ("stamps", (8, 9, 1), "cutouts")
    assert np.array_equal(dataset.train.images, images)
    assert least_accuracy("stamps", labels) == 0.6
    (raw / FILES[3]).unlink()
    for source, message in (
        ("auto", rf"{FILES[3]}.* is missing"),
        ("download", "not known where stamps could"),
    ):
        with pytest.raises(DataError, match=message):
            load_dataset(asked("stamps", raw, source))
    monkeypatch.undo()
    with pytest.raises(EnvironmentInvalid, match="DATASET must be one of"):
        Environment.read({"DATASET": "stamps"})
