"""The modules that the server of a run imports, once, before the processes of its steps are forked from it.

Nothing is imported here, so that `make run` can start the server first and import Dagster while that imports, too.
"""

DAGSTER = (
    "mnist_pipeline.definitions",
    # Each step would import these when it opens the run's history.
    *("dagster._cli", "dagster._core.storage.event_log", "dagster._core.storage.runs", "dagster._utils.test"),
)

MACHINE_LEARNING = (
    *(f"mnist_pipeline.ml.{name}" for name in ("data", "evaluation", "plots")),
    "sklearn.metrics",
)
"""Most steps need these. PyTorch is left to the one that trains."""

TRAINING = ("mnist_pipeline.experiments.trying",)
"""The trials of a sweep need this, and with it PyTorch, again and again."""
