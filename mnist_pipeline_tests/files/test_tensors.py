import errno
import os
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import save_file

from mnist_pipeline.files import tensors
from mnist_pipeline.files.errors import DataError
from mnist_pipeline.files.tensors import mapped, scratch

IMAGES = np.arange(600, dtype=np.uint8).reshape(20, 5, 6)


def test_arrays_stay_in_their_file(tmp_path):
    file = tmp_path / "a.safetensors"
    large = np.tile(IMAGES, (20_000, 1, 1))  # 12 MB
    save_file({"images": large, "none": large[:0], "labels": large[:, 0, 0].copy()}, file, {"spec": "a task"})
    tracemalloc.start()
    try:
        arrays, texts = mapped(file, "images of")
        assert arrays["images"][1234:1300].sum() == large[1234:1300].sum()
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert texts == {"spec": "a task"}
    assert arrays["none"].shape == (0, 5, 6)
    arrays["images"][0] = 7  # torch wants arrays that it may write to
    assert (mapped(file, "images of")[0]["images"][0] == large[0]).all()
    file.unlink()
    assert np.array_equal(arrays["images"][1:], large[1:])
    assert np.array_equal(arrays["labels"], large[:, 0, 0])


@pytest.mark.parametrize("damage", ["truncated", "longer", "no file of this kind", "empty"])
def test_a_damaged_file_is_named(tmp_path, damage):
    file = tmp_path / "a.safetensors"
    save_file({"images": IMAGES}, file)
    whole = file.read_bytes()
    damaged = {"truncated": whole[:-1], "longer": whole + b"0", "empty": b""}
    file.write_bytes(damaged.get(damage, b"\xff" * 100))
    with pytest.raises(DataError, match=r"images of is damaged: .*Materialize the asset"):
        mapped(file, "images of")


def test_other_numbers_are_refused(tmp_path):
    save_file({"images": IMAGES.astype(np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(DataError, match="the kinds F32, not of U8 only"):
        mapped(tmp_path / "a.safetensors", "images of")


def test_what_is_put_together_is_in_a_file_when_it_is_large(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    small = scratch((10, 28, 28))
    assert small.shape == (10, 28, 28)
    assert not small.any()
    tracemalloc.start()
    try:
        large = scratch((tensors.SCRATCH_BYTES // 100 + 1, 10, 10))
        large[-1] = 5
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert (int(large[0].sum()), int(large[-1].sum())) == (0, 500)
    assert os.listdir(tmp_path) == []  # without a name, so that a killed process leaves nothing  # noqa: PTH208

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=rf"no room in {tmp_path} \(TMPDIR\) for 67,108,900 bytes"):
        scratch((tensors.SCRATCH_BYTES // 100 + 1, 10, 10))
