"""A comparison of what a model is asked to predict with what it was validated on.

Each image gives some numbers. Their distributions on the validation split, in bins, are kept with the model; a batch
is counted into the same bins, in constant memory, and compared.
"""

import numpy as np

from mnist_pipeline.ml.records import DriftFinding, DriftReference, DriftReport, Histogram
from mnist_pipeline.ml.settings import DRIFT_P_VALUE, DRIFT_PSI
from mnist_pipeline.task.spec import TaskSpec
from mnist_pipeline.task.statistics import image_statistics

BINS = 20
PART = 1024
"""Images whose statistics are computed at a time."""
SUREST = 1e-6
"""Confidences nearer to 1 are not told apart: single-precision softmax cannot."""


def statistics(images: np.ndarray, probabilities: np.ndarray, spec: TaskSpec) -> dict[str, np.ndarray]:
    """Return a float64 array (N,) for each statistic of uint8 images (N, ...) and their probabilities (N, classes).

    `predicted_label` counts from 0; `certainty` is -log10(1 - confidence), 0..6; the others are those of
    `task.statistics.image_statistics`.
    """
    return {
        "predicted_label": probabilities.argmax(1).astype(np.float64),
        "certainty": -np.log10(np.clip(1 - probabilities.max(1).astype(np.float64), SUREST, 1)),
    } | image_statistics(images, spec)


def reference(images: np.ndarray, probabilities: np.ndarray, spec: TaskSpec) -> DriftReference:
    """Count the statistics of the validation images of a model into bins. Same arguments as `statistics`."""
    parts = [  # all at once would need more memory than the training before
        statistics(images[start : start + PART], probabilities[start : start + PART], spec)
        for start in range(0, len(images), PART)
    ]
    histograms = {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        if name == "predicted_label":
            edges = np.arange(1, probabilities.shape[1]) - 0.5
        else:  # bins of equal share, as many as there are different values
            edges = np.unique(np.quantile(values, np.arange(1, BINS) / BINS))
        histograms[name] = Histogram(edges=edges.tolist(), counts=_count(values, edges).tolist())
    return DriftReference(images=len(images), histograms=histograms)


class DriftMonitor:
    """Counts a batch into the bins of a reference, part by part.

    Statistics that the reference or the code does not know, since they came or went in between, are left out.
    """

    def __init__(self, reference: DriftReference, spec: TaskSpec) -> None:
        self._reference, self._spec = reference, spec
        self._counts = {name: np.zeros(len(h.counts), np.int64) for name, h in reference.histograms.items()}
        self._images = 0

    def add(self, images: np.ndarray, probabilities: np.ndarray) -> None:
        """Count some more images. Same arguments as `statistics`."""
        for name, values in statistics(images, probabilities, self._spec).items():
            if name in self._counts:
                self._counts[name] += _count(values, np.array(self._reference.histograms[name].edges))
        self._images += len(images)

    def merge(self, report: DriftReport) -> None:
        """Count the images of a report about others, of the same reference."""
        for finding in report.findings:
            self._counts[finding.statistic] += np.array(finding.counts)
        self._images += report.images

    def report(self) -> DriftReport:
        """Return the comparison. Raises ValueError if no image was added."""
        if not self._images:
            raise ValueError("there is no image to compare")
        findings = []
        for name, histogram in self._reference.histograms.items():
            expected, found = np.array(histogram.counts), self._counts[name]
            if not found.any():
                continue
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
        return DriftReport(images=self._images, findings=findings)


def where_it_drifted(reference: DriftReference, report: DriftReport, spec: TaskSpec) -> list[str]:
    """Return, for each statistic that drifted, where the batch has more images than the validation split, in words.

    For instance "stroke_width above 3.10: 62% of the batch, 10% of the validation images". Those are the images to be
    labelled.
    """
    said = []
    for finding in report.findings:
        if not finding.drifted:
            continue
        histogram = reference.histograms[finding.statistic]
        expected, found = (np.array(counts) / sum(counts) for counts in (histogram.counts, finding.counts))
        first, last = _densest(found - expected)
        if finding.statistic == "predicted_label":
            first = last = int(np.argmax(found - expected))
            place = f"predicted to be {spec.class_names[first]}"
        else:
            place = f"{finding.statistic} {_between(histogram.edges, first, last)}"
        shares = (values[first : last + 1].sum() for values in (found, expected))
        said.append("{}: {:.0%} of the batch, {:.0%} of the validation images".format(place, *shares))
    return said


def _between(edges: list[float], first: int, last: int) -> str:
    """Return the range of the values in the bins from the first to the last, in words."""
    if first == 0:
        return f"below {edges[last]:.3g}" if last < len(edges) else "of any value"
    if last == len(edges):
        return f"above {edges[first - 1]:.3g}"
    return f"from {edges[first - 1]:.3g} to {edges[last]:.3g}"


def _densest(excess: np.ndarray) -> tuple[int, int]:
    """Return the first and the last bin of the stretch with the largest sum (Kadane's algorithm)."""
    best, bounds, total, start = -np.inf, (0, 0), 0.0, 0
    for position, value in enumerate(excess):
        if total <= 0:
            total, start = 0.0, position
        total += value
        if total > best:
            best, bounds = total, (start, position)
    return bounds


def population_stability_index(expected: np.ndarray, found: np.ndarray) -> float:
    """Return the sum of (p - q) ln(p / q) over bins of counts, each with half an image more, so that none is empty."""
    from scipy.stats import entropy  # seconds that the steps that only keep a reference need not spend

    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (expected, found))
    return float(entropy(p, q) + entropy(q, p))


def _p_value(expected: np.ndarray, found: np.ndarray) -> float:
    """Return p of the chi-squared test that both counts come from one distribution."""
    from scipy.stats import chi2_contingency

    table = np.stack([expected, found])
    table = table[:, table.any(0)]
    return 1.0 if table.shape[1] < 2 else float(chi2_contingency(table).pvalue)


def _count(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
