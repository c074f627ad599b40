"""Streaming of files of every kind, good and bad."""

import numpy as np
import pytest

from mnist_pipeline.ml.inputs import ImageBatch, InputError, find_inputs, inputs_digest, read_batches
from mnist_pipeline_tests.task.examples import SPEC


def write_bad_files(folder) -> set[str]:
    good = np.zeros((3, *SPEC.array_shape), np.uint8)
    np.savez(folder / "whole.npz", good)
    (folder / "truncated.npz").write_bytes((folder / "whole.npz").read_bytes()[:-40])
    (folder / "whole.npz").rename(folder / "archive_by_the_name_of.npy")
    np.save(folder / "array", good)
    (folder / "array.npy").rename(folder / "array_by_the_name_of.npz")
    np.save(folder / "float.npy", good.astype(np.float32))
    np.save(folder / "flat.npy", good.reshape(3, -1))
    np.save(folder / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (folder / "short-ubyte").write_bytes(b"\0\0\x08\3")
    (folder / "text.png").write_bytes(b"text")
    return {path.name for path in folder.iterdir()}


def test_bad_files_are_reported_and_do_not_stop_the_rest(tmp_path):
    bad = write_bad_files(tmp_path)
    np.savez(
        tmp_path / "zz_good.npz",
        a=np.ones((5, *SPEC.array_shape), np.uint8),
        b=np.ones((2, *SPEC.array_shape), np.uint8),
    )
    found = list(read_batches(find_inputs([tmp_path]), SPEC, batch_size=4))
    assert {item.source.rsplit("/", 1)[1] for item in found if isinstance(item, InputError)} == bad
    batches = [item for item in found if isinstance(item, ImageBatch)]
    assert [len(batch.images) for batch in batches] == [4, 1, 2]
    assert [batch.indices for batch in batches] == [[0, 1, 2, 3], [4], [0, 1]]
    assert batches[0].sources[0].endswith("zz_good.npz:a")


@pytest.mark.parametrize("change", ["content", "name"])
def test_the_digest_follows_names_and_contents(tmp_path, change):
    path = tmp_path / "a.npy"
    path.write_bytes(b"1")
    before = inputs_digest(find_inputs([tmp_path]))
    assert inputs_digest(find_inputs([tmp_path])) == before
    path.write_bytes(b"2") if change == "content" else path.rename(tmp_path / "b.npy")
    assert inputs_digest(find_inputs([tmp_path])) != before
