"""The executor of a deployment, by its name in the environment."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import SecretStr

from mnist_pipeline.defs.engines.marking import marking
from mnist_pipeline.environment import DATASET_OF_BEFORE, Environment, EnvironmentInvalid
from mnist_pipeline.files.yaml_file import read_mapping


def executor(environment: Environment, modules: Sequence[str]) -> dg.ExecutorDefinition:
    """Return the executor that EXECUTOR names, with the configuration of EXECUTOR_CONFIG.

    Where steps are forked from a server, that has imported `modules`: a step imports the rest itself. Raises
    EnvironmentInvalid if the engine is not installed, or refuses its configuration.
    """
    if environment.in_memory():
        return one_process_only
    config = _read_config(environment)
    if environment.executor == "docker":
        if not find_spec("dagster_docker"):
            raise EnvironmentInvalid(
                "EXECUTOR=docker needs what is not installed: pip install 'mnist_pipeline[docker]'"
            )
        from mnist_pipeline.defs.engines.containers import DECLARED, container_executor

        if ignored := ", ".join(sorted(DECLARED & {*(config.get("container_kwargs") or {})})):
            raise EnvironmentInvalid(
                f"EXECUTOR_CONFIG {environment.executor_config}: container_kwargs: {ignored} would be ignored, as each "
                "step declares that beside its asset (Compute)"
            )
        definition = container_executor(modules, passed_on(environment))
    elif environment.executor == "multiprocess":
        definition = dg.multiprocess_executor
        config = {"start_method": {"forkserver": {"preload_modules": list(modules)}}} | config
    else:
        definition = dg.in_process_executor
    configured = marking(definition).configured(config)
    if errors := configured.apply_config_mapping({"config": {}}).errors:  # Dagster looks when a run begins
        problems = "; ".join(found.message.partition("\n")[0] for found in errors)
        raise EnvironmentInvalid(f"EXECUTOR_CONFIG {environment.executor_config}: {problems}")
    if (config.get("max_concurrent") or 0) < 0:  # Dagster takes it, and no step ever begins
        raise EnvironmentInvalid(f"EXECUTOR_CONFIG {environment.executor_config}: max_concurrent must be 0 or more")
    return configured


def passed_on(environment: Environment) -> list[str]:
    """Return the names of the variables that steps elsewhere need, too: none of the secret ones, and no executor."""
    fields = Environment.model_fields
    kept = {"executor", "executor_config"} | {n for n in fields if isinstance(getattr(environment, n), SecretStr)}
    return [name.upper() for name in (*fields, *DATASET_OF_BEFORE) if name not in kept]


def _read_config(environment: Environment) -> dict[str, Any]:
    if not environment.executor_config:
        return {}
    try:
        return read_mapping(
            Path(environment.executor_config), "`image: ...`, fields of Dagster's executor of that name"
        )
    except ValueError as error:
        raise EnvironmentInvalid(f"EXECUTOR_CONFIG {error}") from error


@dg.executor(name="one_process_only")
def one_process_only(_: dg.InitExecutorContext) -> dg.Executor:
    """The executor of a deployment in memory: it refuses, since steps in processes of their own would find nothing."""
    raise dg.DagsterInvariantViolationError(
        "memory:// holds values within one process only, and this run would have several: use dg.materialize() or "
        "execute_in_process() in a notebook or a test, or set STORAGE_ROOT to a folder or a bucket"
    )
