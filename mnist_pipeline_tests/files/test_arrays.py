"""Files of arrays: read in parts, and whatever is wrong with them is one error."""

import gzip
import io
import resource
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mnist_pipeline.files.arrays import read_idx, stored_arrays
from mnist_pipeline.files.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 3, 2), np.uint8)


def words(value: object) -> str:
    """The names of tests: compressed content has the time in it."""
    return value if isinstance(value, str) else "content"


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def zipped(content: bytes, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("a.npy", content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    {
        "a.npy": npy(IMAGES),
        "a.npz": zipped(npy(IMAGES)),
        "b.npz": zipped(npy(IMAGES), zipfile.ZIP_LZMA),
        "a-ubyte": idx(IMAGES),
        "a-ubyte.gz": gzip.compress(idx(IMAGES)),
    }.items(),
    ids=words,
)
def test_a_file_of_each_kind_comes_back_in_parts(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with stored_arrays(tmp_path / name) as [array]:
        assert (array.dtype, array.shape) == (IMAGES.dtype, IMAGES.shape)
        for rows in (1, 3, 7, 100):
            parts = list(array.parts(rows))
            assert max(map(len, parts)) == min(rows, 7)
            assert np.array_equal(np.concatenate(parts), IMAGES)


def impossible_shape() -> bytes:
    """A header of an array that no machine can hold."""
    return npy(IMAGES).replace(b"(7, 3, 2)", b"(7" + b"0" * 20 + b", 3, 2)")


def npy_header(text: str) -> bytes:
    header = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"a"


def with_method(number: int) -> bytes:
    """An archive whose member says that it is packed in another way."""
    data = bytearray(zipped(npy(IMAGES)))
    data[8:10] = struct.pack("<H", number)
    central = data.index(b"PK\1\2")
    data[central + 10 : central + 12] = struct.pack("<H", number)
    return bytes(data)


def encrypted() -> bytes:
    data = bytearray(zipped(npy(IMAGES)))
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", impossible_shape(), "more than a file of its size"),
        ("a.npz", zipped(impossible_shape()), "more than a file of its size"),
        ("a.npz", zipped(npy(IMAGES).replace(b"(7, 3, 2)", b"(9, 3, 2)")), "should hold 54 bytes"),
        ("a.npz", zipped(npy(IMAGES) + b"more"), "should hold 42 bytes .* but holds more"),
        ("a.npz", with_method(99), "packed in an unknown way"),
        ("a.npz", encrypted(), "encrypted"),
        ("a.npz", zipped(npy(IMAGES))[:-30], "damaged"),
        ("a.npy", npy(IMAGES)[:-1], "holds 41"),
        ("a.npy", npy(IMAGES).replace(b"(7, 3, 2)", b"(7, -3,2)"), "shape"),
        ("a.npy", npy(IMAGES).replace(b"(7, 3, 2)", b"((((((((("), "damaged"),
        ("a.npy", npy(np.asfortranarray(IMAGES)), "column by column"),
        ("a.npy", b"\x93NUMPY\x01\x00\xff\xff", "its header has 65,535 bytes"),
        ("a.npy", b"", "begins with nothing"),
        ("a-ubyte.gz", gzip.compress(idx(IMAGES))[:-6], "truncated"),
        ("a-ubyte.gz", b"not gzip", "damaged"),
        ("a-ubyte", b"\0\0\x08\xff" + bytes(2000), "255 dimensions"),
        ("a-ubyte", b"\0\0\x08\0a", "0 dimensions"),
        ("a.npy", npy_header("{'descr': (), 'fortran_order': False, 'shape': (1,)}"), "damaged"),
        ("a.npy", npy_header("{[]: 1}"), "damaged"),
        ("a.npy", npy_header("{1: 2, 'a': 3}"), "damaged"),
        ("a.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\x7f", "its header has 2,147,483,647 bytes"),
        ("a-ubyte", b"\0\0\x08\3" + b"\xff" * 12, "more than a file of its size"),
    ],
    ids=words,
)
def test_what_is_wrong_is_one_error_that_names_the_file(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as raised, stored_arrays(path):
        pass
    assert str(path) in str(raised.value)


def test_python_objects_are_not_read(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="Python objects"), stored_arrays(tmp_path / "a.npy"):
        pass


BOMB_BYTES = 2 << 30

BOUNDED = """
import resource, sys
from pathlib import Path
from mnist_pipeline.files.arrays import stored_arrays
from mnist_pipeline.files.errors import DataError
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
try:
    with stored_arrays(Path(sys.argv[1])) as [array]:
        print(sum(len(part) for part in array.parts(256)))
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["bomb-ubyte.gz", "bomb.npz"])
def test_a_small_file_that_would_unpack_to_gigabytes_is_refused_in_little_memory(tmp_path: Path, name: str):
    """Two gigabytes of zeros in two megabytes, read by a process that may have one gigabyte."""
    path, zeros = tmp_path / name, bytes(1 << 20)
    header = bytes([0, 0, 8, 1]) + BOMB_BYTES.to_bytes(4, "big")
    if name.endswith(".gz"):
        with gzip.open(path, "wb", 1) as file:
            file.write(header)
            for _ in range(BOMB_BYTES >> 20):
                file.write(zeros)
    else:
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open("a", "w", force_zip64=True) as file,
        ):
            file.write(header)
            for _ in range(BOMB_BYTES >> 20):
                file.write(zeros)
    run = subprocess.run([sys.executable, "-c", BOUNDED, str(path)], check=True, capture_output=True, text=True)
    assert "more than a file of its size" in run.stdout


def test_a_large_file_is_read_in_little_memory(tmp_path: Path):
    path = tmp_path / "large-ubyte"
    rows = 3 << 10
    with path.open("wb") as file:
        file.write(bytes([0, 0, 8, 2]) + np.array([rows, 1 << 20], ">u4").tobytes())
        file.truncate(file.tell() + (rows << 20))  # sparse: three gigabytes that take no room
    code = BOUNDED.replace("parts(256)", "parts(16)")
    run = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == str(rows)
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_an_idx_file_is_an_array_that_can_be_written_to(tmp_path):
    (tmp_path / "x").write_bytes(idx(IMAGES))
    array = read_idx(tmp_path / "x")
    assert np.array_equal(array, IMAGES)
    array[0] = 0
    (tmp_path / "x").write_bytes(idx(IMAGES[:0]))
    assert read_idx(tmp_path / "x").shape == (0, 3, 2)


def test_numbers_stay_what_they_are(tmp_path):
    """A label of 256 must not become 0: those who read it refuse other numbers than uint8."""
    (tmp_path / "labels-idx1-ubyte").write_bytes(npy(np.array([1, 256, -1])))
    assert read_idx(tmp_path / "labels-idx1-ubyte").tolist() == [1, 256, -1]
