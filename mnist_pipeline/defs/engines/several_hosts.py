"""The needs of a run on several hosts: values that each of them finds, and a history that each can write to."""

import socket

import dagster as dg
import psutil
from dagster._core.storage.event_log.sqlite import ConsolidatedSqliteEventLogStorage, SqliteEventLogStorage

from mnist_pipeline.environment import PLACES, Environment


def is_here(address: str) -> bool:
    """Return whether an IP address is one of this machine's."""
    addresses = {found.address for interface in psutil.net_if_addrs().values() for found in interface}
    return address in addresses or address == socket.gethostname()


def local_places(environment: Environment) -> list[str]:
    """Return the variables, with their values, by which something lies on this machine's disk."""
    values = {name: environment.place(name, "") for name in PLACES if name != "storage_root"}
    values |= {"model_store": environment.model_address(), "prediction_input": environment.input_folder() or ""}
    return [f"{name.upper()} ({value})" for name, value in values.items() if value and "://" not in value]


def require_shared(environment: Environment, instance: dg.DagsterInstance, why: str) -> None:
    """Raise DagsterInvariantViolationError with what is missing, and what to set, if steps could not meet."""
    if environment.experiment:
        raise dg.DagsterInvariantViolationError(
            f"{why}, and an experiment lies on one machine's disk: use another EXECUTOR for it"
        )
    missing = []
    if places := local_places(environment):
        missing.append(
            f"{', '.join(places)}: on one machine's disk, where the others would not find it. "
            "Set STORAGE_ROOT to a bucket (s3://..., gs://..., az://...), and PREDICTION_INPUT to one, or to nothing"
        )
    if isinstance(instance.event_log_storage, SqliteEventLogStorage | ConsolidatedSqliteEventLogStorage):
        missing.append(
            f"the history: it is SQLite in {instance.root_directory}. Use Postgres: deploy/dagster.postgres.yaml"
        )
    if missing:
        raise dg.DagsterInvariantViolationError(f"{why}, and these are missing: {'; '.join(missing)}")
