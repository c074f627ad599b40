"""The choice of labelled images that never train, and so can show whether the others helped."""

import hashlib

import numpy as np
from scipy import ndimage

from mnist_pipeline.ml.settings import SplitSettings

SIDE = 14
"""Images are compared at about this many pixels a side."""

SAME_DRAWING = 0.96
"""The correlation from which two blurred images count as pictures of one drawing. Of handwriting that
was prepared once more after a change it finds 98% with JPEG's losses, 99% cut out otherwise, 90% at another scale, 72%
turned by 3 degrees; of 3,000 drawings by others 19% have such a neighbour, single strokes above all."""

BLOCK = 512
"""Images that are compared with all others at a time."""


def held_out(images: np.ndarray, settings: SplitSettings) -> np.ndarray:
    """Return bool (N,): whether each uint8 image (N, H, W) or (N, H, W, C) is held out from training.

    The digest of an image's content decides, so it stays so whatever else comes, unless that is like it. Pictures of
    one drawing go together, lest a model is asked about what it was trained on: each follows the first image, in the
    order of their digests, that it is like and that follows no other (the leader algorithm: Hartigan 1975, Clustering
    Algorithms, chapter 3).
    Labels have no part in it.
    """
    digests = [hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in images]
    chosen = np.zeros(len(images), bool)
    for leader, members in _drawings(images, digests).items():
        # The digest of the digest: being the first of a group must not make an image more likely to be held out.
        share = int.from_bytes(hashlib.sha256(digests[leader]).digest()[:8], "big") / 2**64
        chosen[members] = share < settings.held_out_fraction
    return chosen


def _drawings(images: np.ndarray, digests: list[bytes]) -> dict[int, list[int]]:
    """Return the positions of the images of each drawing, by that of its leader."""
    order = np.array(sorted(range(len(images)), key=lambda position: digests[position]), int)
    vectors = _vectors(images)[order] if len(images) else np.zeros((0, 1), np.float32)
    groups: dict[int, list[int]] = {}
    is_leader = np.zeros(len(order), bool)
    for start in range(0, len(order), BLOCK):
        alike = vectors[start : start + BLOCK] @ vectors[: start + BLOCK].T >= SAME_DRAWING  # (BLOCK, so far)
        for number, row in enumerate(alike, start):
            leaders = np.flatnonzero(row[:number] & is_leader[:number])
            leader = leaders[0] if len(leaders) else number
            is_leader[leader] = True
            groups.setdefault(int(order[leader]), []).append(int(order[number]))
    return groups


def _vectors(images: np.ndarray) -> np.ndarray:
    """Return float32 (N, D): the images blurred and made small, so that their products are correlations."""
    height, width = images.shape[1:3]
    steps = [max(1, side // SIDE) for side in (height, width)]
    small = []
    for start in range(0, len(images), BLOCK):
        values = images[start : start + BLOCK].astype(np.float32)
        sigma = (0, height / 2 / SIDE, width / 2 / SIDE) + (0,) * (values.ndim - 3)
        blurred = ndimage.gaussian_filter(values, sigma)[:, :: steps[0], :: steps[1]]
        small.append(blurred.reshape(len(values), -1))
    vectors = np.concatenate(small)
    vectors -= vectors.mean(1, keepdims=True)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
