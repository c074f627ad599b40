"""A copy of what the store records, in MLflow, for those who look there. Nothing is ever read from it.

Each version is a run, in the experiment of its task (a trial: of its sweep): parameters, the metrics of each epoch, the
evaluation, the card. Versions of the store itself are in the registry, and the alias `production` follows the pointer.
"""

import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from mnist_pipeline.environment import Environment, EnvironmentInvalid
from mnist_pipeline.ml.manifest import ModelManifest
from mnist_pipeline.ml.records import EpochMetrics
from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.errors import ObjectMissing
from mnist_pipeline.stores.evaluations import KeptEvaluation, kept_evaluation
from mnist_pipeline.stores.versions import CARD

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run
    from mlflow.entities.model_registry import ModelVersion

PRODUCTION_ALIAS = "production"

VERSION_TAG, TRAINING_TAG = "mnist_pipeline.version", "mnist_pipeline.training"
"""The tags by which a run is found again: of a version, of a training that was killed."""

QUICKLY = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Variables of MLflow, where the user set none: a training does not wait minutes for a server that is down."""

NOT_IN_NAMES = re.compile(r"[^\w\-. /:]")
"""Signs that MLflow refuses in names of metrics."""

SHOWS_RUNS = {"mlflow.experimentKind": "custom_model_development"}
"""The tag by which the page of an experiment begins with its runs, and not with traces of language models."""

MOST_AT_A_TIME = 1000
"""MLflow takes no more metrics in a request."""

T = TypeVar("T")


def mlflow_uri(environment: Environment) -> str | None:
    """Return MLFLOW_TRACKING_URI. Raises EnvironmentInvalid if it is set and MLflow is not installed."""
    if environment.mlflow_tracking_uri and not find_spec("mlflow"):
        raise EnvironmentInvalid(
            "MLFLOW_TRACKING_URI needs the extra mlflow: "
            ".venv/bin/python -m pip install -c constraints.txt -e '.[mlflow]'"
        )
    return environment.mlflow_tracking_uri


class Mirror:
    """The runs and the registry of one MLflow server.

    The first call that fails tells so, and nothing more is sent by this object: `problem` has the sentence then.
    """

    def __init__(self, tracking_uri: str, task: str, tell: Callable[[str], None]) -> None:
        """`task` names experiment and registered model, `tell` is called with what went wrong."""
        self.uri, self.task, self.tell = tracking_uri.rstrip("/"), task, tell
        self.problem: str | None = None
        self._run_id: str | None = None
        self._connected: MlflowClient | None = None

    def training_begins(self, settings: dict[str, Any], fingerprint: str) -> None:
        """Begin the run of a training, or go on with the one of the same training that was killed."""
        self._try(lambda client: self._begin(client, settings, fingerprint))

    def epoch(self, metrics: EpochMetrics) -> None:
        """Send the metrics of an epoch of the training that began."""
        if run_id := self._run_id:
            self._try(lambda client: client.log_batch(run_id, list(_epoch_metrics(metrics, _milliseconds()))))

    def training_failed(self, why: str) -> None:
        """End the run of the training that began."""
        if run_id := self._run_id:
            self._try(lambda client: client.set_tag(run_id, "mlflow.note.content", why))
            self._try(lambda client: client.set_terminated(run_id, "FAILED"))

    def version(self, store: ModelStore, name: str, registered: bool = True) -> str | None:
        """Send all that is recorded about a version; again, what is new. Return the page of its run, None on failure.

        With `registered` the version is put into the registry, too. Raises UnknownModel or CorruptModel for a version
        that cannot be read.
        """
        manifest, evaluation = store.manifest(name), kept_evaluation(store, name)
        try:
            card: str | None = store.read_object(f"{name}/{CARD}")[0].decode()
        except ObjectMissing:
            card = None

        def send(client: "MlflowClient") -> str:
            run = self._run_of(client, manifest)
            run_id = run.info.run_id
            self._send(client, run, manifest, evaluation)
            for tag, value in _tags(manifest, store.address).items():
                client.set_tag(run_id, tag, value)
            if card:
                client.log_text(run_id, card, CARD)
            if run.info.status == "RUNNING":
                client.set_terminated(run_id, end_time=_milliseconds(manifest.training.created_at))
            if registered:
                self._register(client, manifest, store.address, run)
            self._run_id = None
            return f"{self.uri}/#/experiments/{run.info.experiment_id}/runs/{run_id}"

        return self._try(send)

    def pointer(self, store: ModelStore) -> None:
        """Set the alias `production` to what is deployed. Raises UnknownModel or CorruptModel, as `version` does."""
        deployed = store.production()
        if deployed is None:
            return
        registered = self._try(lambda client: self._registered(client, deployed.version))
        if registered is None and not self.problem:
            self.version(store, deployed.version)
            registered = self._try(lambda client: self._registered(client, deployed.version))
        if registered:
            number = registered.version
            self._try(lambda client: client.set_registered_model_alias(self.task, PRODUCTION_ALIAS, number))

    def _try(self, ask: "Callable[[MlflowClient], T]") -> T | None:
        if self.problem:
            return None
        for variable, value in QUICKLY.items():
            os.environ.setdefault(variable, value)
        from google.protobuf.json_format import ParseError
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            self._connected = self._connected or MlflowClient(self.uri, self.uri)
            return ask(self._connected)
        except (MlflowException, ParseError, OSError) as error:  # of requests are OSErrors, too
            self.problem = (
                f"MLflow at {self.uri} was not told: {str(error).partition(chr(10))[0]}. Nothing depends on it; "
                "`python -m mnist_pipeline mlflow` tells it all that it lacks"
            )
            self.tell(self.problem)
            return None

    def _begin(self, client: "MlflowClient", settings: dict[str, Any], fingerprint: str) -> None:
        experiment = self._experiment(client, self.task)
        killed = f"tags.`{TRAINING_TAG}` = '{fingerprint}' and attributes.status = 'RUNNING'"
        found = client.search_runs([experiment], killed, max_results=1)
        run = found[0] if found else client.create_run(experiment, tags={TRAINING_TAG: fingerprint})
        self._run_id = run.info.run_id
        if not found:
            client.log_batch(self._run_id, params=list(_parameters(settings)))

    def _send(
        self, client: "MlflowClient", run: "Run", manifest: ModelManifest, evaluation: KeptEvaluation | None
    ) -> None:
        """Send the parameters, epochs and scores that a run does not have yet."""
        run_id, told, training = run.info.run_id, run.data, manifest.training
        steps = {metric.step for metric in client.get_metric_history(run_id, "validation_loss")}
        at, metrics = _milliseconds(training.created_at), list["Metric"]()
        for epoch in training.epochs:
            metrics += _epoch_metrics(epoch, at) if epoch.epoch not in steps else ()
        scores = _evaluation_metrics(evaluation) if evaluation else {}
        new = {name: value for name, value in scores.items() if told.metrics.get(name) != value}
        metrics += [_metric(name, value, _milliseconds(), 0) for name, value in new.items()]
        for start in range(0, len(metrics), MOST_AT_A_TIME):
            client.log_batch(run_id, metrics[start : start + MOST_AT_A_TIME])
        client.log_batch(run_id, params=[one for one in _parameters(training.settings) if one.key not in told.params])

    def _run_of(self, client: "MlflowClient", manifest: ModelManifest) -> "Run":
        """The run of a version: of the training that just ended, the one that has its tag, or a new one."""
        if self._run_id:
            return client.get_run(self._run_id)
        trial = manifest.training.trial
        experiment = self._experiment(client, f"{self.task}/{trial.partition('/')[0]}" if trial else self.task)
        found = client.search_runs([experiment], f"tags.`{VERSION_TAG}` = '{manifest.name}'", max_results=1)
        began = _milliseconds(manifest.training.began_at)
        return found[0] if found else client.create_run(experiment, began, {VERSION_TAG: manifest.name})

    def _register(self, client: "MlflowClient", manifest: ModelManifest, address: str, run: "Run") -> None:
        if self._registered(client, manifest.name):
            return
        if not client.search_registered_models(f"name = '{self.task}'", max_results=1):
            _unless_it_exists(lambda: client.create_registered_model(self.task))
        client.create_model_version(
            self.task,
            run.info.artifact_uri,
            run.info.run_id,
            tags={VERSION_TAG: manifest.name},
            description=f"{manifest.name} in {address}, which is what counts",
            await_creation_for=0,  # there is nothing to wait for
        )

    def _registered(self, client: "MlflowClient", name: str) -> "ModelVersion | None":
        found = client.search_model_versions(f"name = '{self.task}' and tags.`{VERSION_TAG}` = '{name}'", max_results=1)
        return found[0] if found else None

    def _experiment(self, client: "MlflowClient", name: str) -> str:
        if (found := client.get_experiment_by_name(name)) is None:
            _unless_it_exists(lambda: client.create_experiment(name, tags=SHOWS_RUNS))
            found = client.get_experiment_by_name(name)
        assert found, "it is there by now"
        return found.experiment_id


def mirror_of(environment: Environment, tell: Callable[[str], None]) -> Mirror | None:
    """Return the mirror of a deployment; None if it has none. Raises EnvironmentInvalid as `mlflow_uri` does."""
    uri = mlflow_uri(environment)
    return Mirror(uri, environment.task_name, tell) if uri else None


def _unless_it_exists(create: Callable[[], object]) -> None:
    """Create something, unless another process has just done so."""
    from mlflow.exceptions import MlflowException

    try:
        create()
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _parameters(settings: dict[str, Any]) -> Iterator[Any]:
    from mlflow.entities import Param

    yield from (Param(name, str(value)) for name, value in settings.items())


def _epoch_metrics(metrics: EpochMetrics, at: int) -> "Iterator[Metric]":
    values = metrics.model_dump(exclude={"epoch"})
    yield from (
        _metric(name, value, at, metrics.epoch) for name, value in values.items() if isinstance(value, int | float)
    )


def _evaluation_metrics(kept: KeptEvaluation) -> dict[str, float]:
    found = {"evaluation/confidence_threshold": kept.threshold}
    for split in ("validation", "test"):
        scores = getattr(kept.evaluation, split)
        for measure in ("accuracy", "loss", "expected_calibration_error"):
            found[f"evaluation/{split}_{measure}"] = getattr(scores, measure)
    return found | {f"slice_accuracy/{NOT_IN_NAMES.sub('_', s.name)}": s.accuracy for s in kept.evaluation.slices}


def _metric(name: str, value: float, at: int, step: int) -> "Metric":
    from mlflow.entities import Metric

    return Metric(name, float(value), at, step)


def _tags(manifest: ModelManifest, address: str) -> dict[str, str]:
    training, origin = manifest.training, manifest.training.provenance
    told = {
        "mlflow.runName": training.trial or manifest.name,
        VERSION_TAG: manifest.name,
        "mnist_pipeline.store": address,
        "mnist_pipeline.weights_sha256": manifest.weights_sha256,
        "mnist_pipeline.data_version": training.data_version,
        "dagster.run_id": training.run_id,
        "mlflow.source.git.commit": origin.git_commit if origin else None,
    }
    return {name: str(value) for name, value in told.items() if value}


def _milliseconds(moment: datetime | None = None) -> int:
    return int((moment or datetime.now(UTC)).timestamp() * 1000)
