"""The executor of a deployment, by its name in the environment."""

from collections.abc import Collection, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, get_args

import dagster as dg
from dagster._check import CheckError  # Dagster has no public name for it
from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError

from mnist_pipeline.defs.engines.compute import Compute
from mnist_pipeline.defs.engines.marking import marking
from mnist_pipeline.defs.engines.shared_or_own import Overrides
from mnist_pipeline.environment import DATASET_OF_BEFORE, Environment, EnvironmentInvalid
from mnist_pipeline.files.yaml_file import read_mapping

PACKAGES = {"docker": ["dagster_docker"], "ray": ["dagster_ray", "ray"], "k8s": ["dagster_k8s"]}
"""The packages of the engines with places of their own; each has an extra of its name."""

EXAMPLES = {
    "in_process": "retries: {enabled: {}}",
    "multiprocess": "max_concurrent: 2",
    "docker": "image: ...",
    "ray": "ray: {address: ...}",
    "k8s": "max_concurrent: 4",
}
"""A field of each executor."""

COMPUTE = "compute"
"""The field of EXECUTOR_CONFIG with what this deployment declares otherwise than the code."""


class _Override(BaseModel):
    """Fields of `Compute`; those that are not named stay what the code declares."""

    model_config = ConfigDict(extra="forbid", strict=True)

    cores: Annotated[int, Field(ge=1)] | None = None
    memory_mib: Annotated[int, Field(ge=1)] | None = None
    gpus: Annotated[int, Field(ge=0)] | None = None


def executor(environment: Environment, modules: Sequence[str], declaring: Collection[str]) -> dg.ExecutorDefinition:
    """Return the executor that EXECUTOR names, with the configuration of EXECUTOR_CONFIG.

    Where steps are forked from a server, that has imported `modules`: a step imports the rest itself. `declaring` are
    the names of the steps that declare what they need. Raises EnvironmentInvalid if the engine is not installed, or
    refuses its configuration.
    """
    if environment.in_memory():
        return one_process_only
    engine, file = environment.executor, environment.executor_config
    config = _read_config(environment)
    least, most = 1 if engine in ("k8s", "ray") else 0, config.get("max_concurrent")
    if isinstance(most, int) and most < least:  # Dagster takes it until it runs
        raise EnvironmentInvalid(f"EXECUTOR_CONFIG {file}: max_concurrent must be {least} or more")
    if engine in PACKAGES:
        if not all(find_spec(package) for package in PACKAGES[engine]):
            raise EnvironmentInvalid(
                f"EXECUTOR={engine} needs what is not installed: pip install 'mnist_pipeline[{engine}]'"
            )
        given = config.pop(COMPUTE, None)
        overrides = _read_overrides({} if given is None else given, declaring, f"EXECUTOR_CONFIG {file}: {COMPUTE}")
        definition = _with_own_places(environment, config, modules, overrides)
    elif engine == "multiprocess":
        definition = dg.multiprocess_executor
        config = {"start_method": {"forkserver": {"preload_modules": list(modules)}}} | config
    else:
        definition = dg.in_process_executor
    configured = marking(definition).configured(config)
    try:
        errors = configured.apply_config_mapping({"config": {}}).errors  # Dagster looks when a run begins
    except CheckError as error:
        raise EnvironmentInvalid(f"EXECUTOR_CONFIG {file}: {error}") from error
    if errors:  # of which Dagster tells all fields that there are, too
        problems = "; ".join(found.message.partition("\n")[0].partition(". Expected:")[0] for found in errors)
        raise EnvironmentInvalid(f"EXECUTOR_CONFIG {file}: {problems}")
    return configured


def _with_own_places(
    environment: Environment, config: dict[str, Any], modules: Sequence[str], overrides: Overrides
) -> dg.ExecutorDefinition:
    """The executor of an engine with machines, pods or containers."""
    if environment.executor == "docker":
        from mnist_pipeline.defs.engines import containers

        _refuse_ignored(environment, config, "container_kwargs", containers.DECLARED)
        return containers.container_executor(modules, passed_on(), overrides)
    if environment.executor == "ray":
        from mnist_pipeline.defs.engines import ray_jobs

        config["ray"] = {} if config.get("ray") is None else config["ray"]
        _refuse_ignored(environment, config, "ray", ray_jobs.DECLARED)
        most = config.pop("max_concurrent", None)  # dagster-ray has none
        if isinstance(most, bool) or not isinstance(most, int | None):
            raise EnvironmentInvalid(
                f"EXECUTOR_CONFIG {environment.executor_config}: max_concurrent must be a number, not {most!r}"
            )
        address = config["ray"].get("address") if isinstance(config["ray"], dict) else None
        if isinstance(address, str) and not address.startswith(("http://", "https://")):  # Ray waits long for others
            raise EnvironmentInvalid(
                f"EXECUTOR_CONFIG {environment.executor_config}: ray: address must be that of the cluster's dashboard, "
                f"http://HOST:8265, not {address!r}"
            )
        return ray_jobs.cluster_executor(environment, modules, passed_on(), overrides, most)
    from mnist_pipeline.defs.engines.kubernetes_jobs import pod_executor

    return pod_executor(environment, modules, overrides)


def _refuse_ignored(environment: Environment, config: dict[str, Any], field: str, declared: frozenset[str]) -> None:
    given = config.get(field)
    if ignored := ", ".join(sorted(declared & {*(given if isinstance(given, dict) else {})})):
        raise EnvironmentInvalid(
            f"EXECUTOR_CONFIG {environment.executor_config}: {field}: {ignored} would be ignored, as each step "
            f"declares that beside its asset (Compute); what this deployment has otherwise stands under `{COMPUTE}`"
        )


def _read_overrides(given: Any, declaring: Collection[str], name: str) -> Overrides:
    try:
        overrides = TypeAdapter(dict[str, _Override]).validate_python(given)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        form = "it names steps, and of each `cores`, `memory_mib` or `gpus`"
        raise EnvironmentInvalid(f"{name}: {form}; {problems.removeprefix(': ')}") from None
    if unknown := sorted({*overrides} - {*declaring}):
        raise EnvironmentInvalid(
            f"{name}: {', '.join(unknown)} is not one of the steps that declare what they need: "
            f"{', '.join(sorted(declaring))}"
        )
    return {step: override.model_dump(exclude_none=True) for step, override in overrides.items()}


def declaring_steps(assets: Iterable[dg.AssetsDefinition]) -> set[str]:
    """Return the names of the steps that declare what they need; those of an asset in parts have its name."""
    return {
        asset.node_def.name
        for asset in assets
        if any(Compute.of(operation.tags) for operation in asset.node_def.iterate_op_defs())
    }


def passed_on() -> list[str]:
    """Return the names of the variables that steps elsewhere need, too: none of the secret ones, and no executor."""
    fields = Environment.model_fields
    kept = {"executor", "executor_config"} | {name for name, field in fields.items() if _is_secret(field.annotation)}
    return [name.upper() for name in (*fields, *DATASET_OF_BEFORE) if name not in kept]


def _is_secret(annotation: Any) -> bool:
    return annotation is SecretStr or any(map(_is_secret, get_args(annotation)))


def _read_config(environment: Environment) -> dict[str, Any]:
    if not environment.executor_config:
        return {}
    try:
        form = f"`{EXAMPLES[environment.executor]}`, fields of Dagster's executor of that name"
        return read_mapping(Path(environment.executor_config), form)
    except ValueError as error:
        raise EnvironmentInvalid(f"EXECUTOR_CONFIG {error}") from error


@dg.executor(name="one_process_only")
def one_process_only(_: dg.InitExecutorContext) -> dg.Executor:
    """The executor of a deployment in memory: it refuses, since steps in processes of their own would find nothing."""
    raise dg.DagsterInvariantViolationError(
        "memory:// holds values within one process only, and this run would have several: use dg.materialize() or "
        "execute_in_process() in a notebook or a test, or set STORAGE_ROOT to a folder or a bucket"
    )
