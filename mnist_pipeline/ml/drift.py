"""Whether what a model is asked to predict still looks like what it was validated on.

Each image gives six numbers. Their distributions on the validation split, in bins, are kept with the model; a batch
is counted into the same bins, in constant memory, and compared.
"""

import numpy as np

from mnist_pipeline.ml.records import DriftFinding, DriftReference, DriftReport, Histogram
from mnist_pipeline.ml.settings import CLASSES, DRIFT_P_VALUE, DRIFT_PSI, SIDE

BINS = 20
PART = 1024
"""Images whose statistics are computed at a time."""
SUREST = 1e-6
"""Confidences nearer to 1 are not told apart: single-precision softmax cannot."""
FRAMED_SIDE = SIDE + 2


def statistics(images: np.ndarray, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Six float arrays (N,) for uint8 images (N, 28, 28), 0 background to 255 ink, and their probabilities (N, 10).

    `predicted_label` 0..9; `certainty`, -log10(1 - confidence), 0..6; `ink`, mean intensity, 0..1; `stroke_width`,
    pixels; `centre_x` and `centre_y`, centre of mass in pixels from the left and top edge (the middle of an empty
    image).
    """
    # Products of integers, not of floats: those start BLAS threads, which get in the way of torch's.
    columns, rows, position = images.sum(1, dtype=np.uint32), images.sum(2, dtype=np.uint32), np.arange(SIDE)
    ink = columns.sum(1, dtype=np.float64)
    # The frame keeps the ends of the rows apart, so that neighbours are those one step and one row away.
    framed = np.pad(images, ((0, 0), (1, 1), (1, 1))).reshape(-1, FRAMED_SIDE**2)
    neighbours = [(framed[:, step:], framed[:, :-step]) for step in (1, FRAMED_SIDE)]
    # Area over half the length of the outline: exact for straight strokes, larger where edges are blurred.
    outline = sum(
        (np.maximum(here, there) - np.minimum(here, there)).sum(1, dtype=np.uint32)  # within uint8
        for here, there in neighbours
    )
    middle = (SIDE - 1) / 2
    something = ink > 0
    return {
        "predicted_label": probabilities.argmax(1).astype(np.float64),
        "certainty": -np.log10(np.clip(1 - probabilities.max(1).astype(np.float64), SUREST, 1)),
        "ink": ink / (255 * SIDE * SIDE),
        "stroke_width": np.divide(2 * ink, outline, out=np.zeros_like(ink), where=something),
        "centre_x": np.divide(columns @ position, ink, out=np.full_like(ink, middle), where=something),
        "centre_y": np.divide(rows @ position, ink, out=np.full_like(ink, middle), where=something),
    }


def reference(images: np.ndarray, probabilities: np.ndarray) -> DriftReference:
    """What the statistics look like on the validation images of a model. Same arguments as `statistics`."""
    parts = [  # all at once would need more memory than the training before
        statistics(images[start : start + PART], probabilities[start : start + PART])
        for start in range(0, len(images), PART)
    ]
    histograms = {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        if name == "predicted_label":
            edges = np.arange(1, CLASSES) - 0.5
        else:  # bins of equal share, as many as there are different values
            edges = np.unique(np.quantile(values, np.arange(1, BINS) / BINS))
        histograms[name] = Histogram(edges=edges.tolist(), counts=_count(values, edges).tolist())
    return DriftReference(images=len(images), histograms=histograms)


class DriftMonitor:
    """Counts a batch into the bins of a reference, part by part."""

    def __init__(self, reference: DriftReference) -> None:
        self._reference = reference
        self._counts = {name: np.zeros(len(h.counts), np.int64) for name, h in reference.histograms.items()}

    def add(self, images: np.ndarray, probabilities: np.ndarray) -> None:
        """The same arguments as `statistics`."""
        for name, values in statistics(images, probabilities).items():
            self._counts[name] += _count(values, np.array(self._reference.histograms[name].edges))

    def report(self) -> DriftReport:
        """The comparison. Raises ValueError if no image was added."""
        images = int(self._counts["predicted_label"].sum())
        if not images:
            raise ValueError("there is no image to compare")
        findings = []
        for name, histogram in self._reference.histograms.items():
            expected, found = np.array(histogram.counts), self._counts[name]
            psi, p_value = population_stability_index(expected, found), _p_value(expected, found)
            findings.append(
                DriftFinding(
                    statistic=name,
                    population_stability_index=psi,
                    p_value=p_value,
                    drifted=psi > DRIFT_PSI and p_value < DRIFT_P_VALUE,
                    counts=found.tolist(),
                )
            )
        return DriftReport(images=images, findings=findings)


def population_stability_index(expected: np.ndarray, found: np.ndarray) -> float:
    """Sum of (p - q) ln(p / q) over bins, from counts; half an image is added to each bin, so that none is empty."""
    from scipy.stats import entropy  # seconds that the steps that only keep a reference need not spend

    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (expected, found))
    return float(entropy(p, q) + entropy(q, p))


def _p_value(expected: np.ndarray, found: np.ndarray) -> float:
    """Of the chi-squared test that both counts come from one distribution."""
    from scipy.stats import chi2_contingency

    table = np.stack([expected, found])
    table = table[:, table.any(0)]
    return 1.0 if table.shape[1] < 2 else float(chi2_contingency(table).pvalue)


def _count(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
