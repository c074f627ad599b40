"""A copy of what the store records, in MLflow, for those who look there. Nothing is ever read from it.

Each version is a run, in the experiment of its task (a trial: of its sweep): parameters, the metrics of each epoch, the
evaluation, the card. Versions of the store itself are in the registry, and the alias `production` follows the pointer.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from importlib.util import find_spec
from textwrap import shorten
from typing import TYPE_CHECKING, Any, TypeVar

from mnist_pipeline.environment import Environment, EnvironmentInvalid
from mnist_pipeline.experiments.mlflow_records import (
    TRAINING_TAG,
    VERSION_TAG,
    epoch_metrics,
    evaluation_metrics,
    metric,
    milliseconds,
    parameters,
    run_tags,
)
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

QUICKLY = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Variables of MLflow, where the user set none: a training does not wait minutes for a server that is down."""

SECRETS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_USERNAME")

MOST_WORDS = 200
"""The length of what is told of an error, in characters."""

MOST_SECONDS = 60
"""A step waits no longer for MLflow, in all, however a server dawdles."""

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

    def __init__(self, tracking_uri: str, task: str, tell: Callable[[str], None], seconds: float | None = None) -> None:
        """`task` names experiment and registered model, `tell` is called with what went wrong.

        All calls together may take so many seconds, by default MOST_SECONDS.
        """
        self.uri, self.task, self.tell = tracking_uri.rstrip("/"), task, tell
        self.problem: str | None = None
        self._run_id: str | None = None
        self._connected: MlflowClient | None = None
        self._seconds_left = float(MOST_SECONDS if seconds is None else seconds)

    def training_begins(self, settings: dict[str, Any], fingerprint: str, address: str) -> None:
        """Begin the run of a training, or go on with the one of the same training that was killed.

        `fingerprint` is that of `training_fingerprint`, `address` that of the store.
        """
        key = hashlib.sha256(f"{address} {fingerprint}".encode()).hexdigest()
        self._try(lambda client: self._begin(client, settings, key))

    def epoch(self, metrics: EpochMetrics) -> None:
        """Send the metrics of an epoch of the training that began."""
        if run_id := self._run_id:
            self._try(lambda client: client.log_batch(run_id, list(epoch_metrics(metrics, milliseconds()))))

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
        decision = next(store.decisions_about(name), None)
        try:
            card: str | None = store.read_object(f"{name}/{CARD}")[0].decode()
        except ObjectMissing:
            card = None

        def send(client: "MlflowClient") -> str:
            run = self._run_of(client, manifest)
            run_id = run.info.run_id
            self._send(client, run, manifest, evaluation)
            for tag, value in run_tags(manifest, store.address, decision).items():
                client.set_tag(run_id, tag, value)
            if card:
                client.log_text(run_id, card, CARD)
            if run.info.status == "RUNNING":
                client.set_terminated(run_id, end_time=milliseconds(manifest.training.created_at))
            if registered:
                self._register(client, manifest, store.address, run)
            self._run_id = None
            return f"{self.uri}/#/experiments/{run.info.experiment_id}/runs/{run_id}"

        return self._try(send)

    def pointer(self, store: ModelStore) -> None:
        """Set the alias `production` to what is deployed. Raises UnknownModel or CorruptModel, as `version` does."""
        said: str | None = None
        while (deployed := store.production()) and deployed.version != said and not self.problem:
            said = deployed.version  # somebody may deploy another one while this is told
            if not self._try(partial(self._set_alias, said)):
                self.version(store, said)
                self._try(partial(self._set_alias, said))

    def _set_alias(self, name: str, client: "MlflowClient") -> bool:
        """Set the alias to a version if that is registered, and return whether it is."""
        if registered := self._registered(client, name):
            client.set_registered_model_alias(self.task, PRODUCTION_ALIAS, registered.version)
        return registered is not None

    def _try(self, ask: "Callable[[MlflowClient], T]") -> T | None:
        if self.problem:
            return None
        for variable, value in QUICKLY.items():
            os.environ.setdefault(variable, value)
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
        from google.protobuf.json_format import ParseError
        from mlflow.exceptions import MlflowException

        began = time.monotonic()
        try:
            return _within(self._seconds_left, lambda: ask(self._client()))
        # Errors of requests are OSErrors, too. A card may go to a bucket: with boto3, or what is not installed.
        except (
            *(MlflowException, ParseError, OSError, ValueError, ImportError),
            *(BotoCoreError, ClientError, Boto3Error),
        ) as error:
            self.problem = (
                f"MLflow at {self.uri} was not told: {_without_secrets(error)}. Nothing depends on it; "
                "`python -m mnist_pipeline mlflow` tells it all that it lacks"
            )
            self.tell(self.problem)
            return None
        finally:
            self._seconds_left -= time.monotonic() - began

    def _client(self) -> "MlflowClient":
        from mlflow import MlflowClient

        self._connected = self._connected or MlflowClient(self.uri, self.uri)
        return self._connected

    def _begin(self, client: "MlflowClient", settings: dict[str, Any], key: str) -> None:
        experiment = self._experiment(client, self.task)
        killed = f"tags.`{TRAINING_TAG}` = '{key}' and attributes.status = 'RUNNING'"
        found = client.search_runs([experiment], killed, max_results=1)
        run = found[0] if found else client.create_run(experiment, tags={TRAINING_TAG: key})
        self._run_id = run.info.run_id
        if not found:
            client.log_batch(self._run_id, params=list(parameters(settings)))

    def _send(
        self, client: "MlflowClient", run: "Run", manifest: ModelManifest, evaluation: KeptEvaluation | None
    ) -> None:
        """Send the parameters, epochs and scores that a run does not have yet."""
        run_id, told, training = run.info.run_id, run.data, manifest.training
        steps = {metric.step for metric in client.get_metric_history(run_id, "validation_loss")}
        at, metrics = milliseconds(training.created_at), list["Metric"]()
        for epoch in training.epochs:
            metrics += epoch_metrics(epoch, at) if epoch.epoch not in steps else ()
        scores = evaluation_metrics(evaluation) if evaluation else {}
        new = {name: value for name, value in scores.items() if told.metrics.get(name) != value}
        metrics += [metric(name, value, milliseconds(), 0) for name, value in new.items()]
        for start in range(0, len(metrics), MOST_AT_A_TIME):
            client.log_batch(run_id, metrics[start : start + MOST_AT_A_TIME])
        client.log_batch(run_id, params=[one for one in parameters(training.settings) if one.key not in told.params])

    def _run_of(self, client: "MlflowClient", manifest: ModelManifest) -> "Run":
        """The run of a version: of the training that just ended, the one that has its tag, or a new one."""
        if self._run_id:
            return client.get_run(self._run_id)
        trial = manifest.training.trial
        experiment = self._experiment(client, f"{self.task}/{trial.partition('/')[0]}" if trial else self.task)
        found = client.search_runs([experiment], f"tags.`{VERSION_TAG}` = '{manifest.name}'", max_results=1)
        began = milliseconds(manifest.training.began_at)
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
        if found is None:
            raise OSError(f"it has no experiment {name} after it made one")
        return found.experiment_id


def mirror_of(environment: Environment, tell: Callable[[str], None], seconds: float | None = None) -> Mirror | None:
    """Return the mirror of a deployment; None if it has none. Raises EnvironmentInvalid as `mlflow_uri` does."""
    uri = mlflow_uri(environment)
    return Mirror(uri, environment.task_name, tell, seconds) if uri else None


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Return what a call returns. Raises TimeoutError when it takes longer, and leaves it to itself then."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True, name="mlflow").start()
    try:
        return done.result(max(seconds, 0))
    except TimeoutError as error:
        raise TimeoutError(f"it took too long{f': {error}' if str(error) else ''}") from error


def _without_secrets(error: Exception) -> str:
    """The beginning of what an error says, or of its cause where it names one."""
    said = str(error).rpartition("Caused by ")[2] or type(error).__name__
    for name in SECRETS:
        if secret := os.environ.get(name, "").strip():
            said = said.replace(secret, "***")
    return shorten(said, MOST_WORDS)


def _unless_it_exists(create: Callable[[], object]) -> None:
    """Create something, unless another process has just done so."""
    from mlflow.exceptions import MlflowException

    try:
        create()
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
