"""The configuration of runs: other defaults from a file, and a check of the values before a run begins.

Dagster refuses unknown names and wrong types before a run starts, but numbers out of range and contradictory
combinations only when their own step begins, after all steps before it. Here each asset's configuration is checked
when Dagster resolves it, which it does before it launches a run of any job, or of assets chosen by hand.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import BaseModel, Field, ValidationError, create_model

from mnist_pipeline.files.yaml_file import read_yaml

CONFIG_DIGEST_LENGTH = 8


class ConfigInvalid(dg.DagsterError):
    """A setting has a value that it cannot have; the message says step, field, and what is allowed."""


def read_pipeline_config(path: str) -> dict[str, dict[str, Any]]:
    """Return the configuration of each step in a file of the form of a run's configuration: `ops: {step: {config: }}`.

    Raises ConfigInvalid if the file cannot be read or has another form.
    """
    try:
        content = read_yaml(Path(path))
        steps = {step: values["config"] for step, values in content.pop("ops").items()}
        if content or not all(isinstance(config, dict) for config in steps.values()):
            raise TypeError(
                f"unknown names: {', '.join(map(str, content))}" if content else "a config is not a mapping"
            )
        if wrong := [name for names in (steps, *steps.values()) for name in names if not isinstance(name, str)]:
            raise TypeError(f"names that are no text: {wrong}")
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigInvalid(f"PIPELINE_CONFIG {path} is not a file of 'ops: <step>: config: ...': {error}") from error
    return steps


def configure(
    assets: list[dg.AssetsDefinition], defaults: Mapping[str, Mapping[str, Any]], source: str
) -> list[dg.AssetsDefinition]:
    """Return the assets with their configuration checked early and with `defaults` in place of their own.

    For what a run's configuration leaves out. A `dg.RunConfig` of config objects leaves nothing out: it has the
    defaults of its classes.

    Defaults that differ from an asset's own become part of its code version, so that a change of them builds it anew.
    Raises ConfigInvalid, naming `source`, for defaults that are of no asset or that the asset would refuse.
    """
    with_config = {asset.op.name for asset in assets if config_class(asset)}
    if unknown := sorted(set(defaults) - with_config):
        raise ConfigInvalid(
            f"{source} configures {', '.join(unknown)}; the steps with settings are {', '.join(sorted(with_config))}"
        )
    return [_configured(asset, defaults.get(asset.op.name, {}), source) for asset in assets]


def config_class(asset: dg.AssetsDefinition) -> type[dg.Config] | None:
    """Return the annotation of the asset's argument `config`; None if it has none."""
    annotation = getattr(asset.op.compute_fn, "decorated_fn").__annotations__.get("config")  # noqa: B009  (untyped)
    return annotation if isinstance(annotation, type) and issubclass(annotation, dg.Config) else None


def _configured(asset: dg.AssetsDefinition, defaults: Mapping[str, Any], source: str) -> dg.AssetsDefinition:
    config = config_class(asset)
    if config is None:
        return asset
    _require_valid(defaults, source=source, step=asset.op.name, config=config)
    values = config(**defaults)
    changed = {n: v for n in defaults if (v := getattr(values, n)) != config.model_fields[n].default}
    shown = _with_defaults(config, changed) if changed else config
    check = partial(_require_valid, source="The run's configuration", step=asset.op.name, config=config)
    op = asset.op.configured(check, name=asset.op.name, config_schema=shown.to_fields_dict())
    # Dagster has no public way to another op of the same asset.
    configured = type(asset).dagster_internal_init(**asset.get_attributes_dict() | {"node_def": op})
    return _with_code_version(configured, changed) if changed else configured


def _with_defaults(config: type[dg.Config], defaults: Mapping[str, Any]) -> type[dg.Config]:
    """The class with other defaults, of which Dagster makes the form in the launchpad."""
    fields = {name: config.model_fields[name] for name in defaults}
    shown = {n: (f.annotation, Field(defaults[n], description=f.description)) for n, f in fields.items()}
    return create_model(config.__name__, __base__=config, **shown)  # type: ignore[call-overload]


def _with_code_version(asset: dg.AssetsDefinition, changed: Mapping[str, Any]) -> dg.AssetsDefinition:
    digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:CONFIG_DIGEST_LENGTH]
    return asset.map_asset_specs(
        lambda spec: spec.replace_attributes(code_version=f"{spec.code_version or ''}-{digest}")
    )


def _require_valid(values: Mapping[str, Any], *, source: str, step: str, config: type[BaseModel]) -> Mapping[str, Any]:
    """Return `values` unchanged. Raises ConfigInvalid with a sentence for each that `config` refuses."""
    try:
        config(**values)
    except ValidationError as error:
        problems = [_sentence(step, config, found["loc"], found["msg"], found["input"]) for found in error.errors()]
        raise ConfigInvalid("\n".join([f"{source} is not valid:", *problems])) from None
    return values


def _sentence(step: str, config: type[BaseModel], location: tuple[int | str, ...], message: str, value: object) -> str:
    where = ".".join(map(str, [step, *location]))
    got = f" (got {value!r}{_allowed(config, location)})" if location else ""  # without one, the input is all settings
    return f"{where}: {message.removeprefix('Value error, ')}{got}"


def _allowed(config: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """Both ends of a number's range; pydantic's message has the one that was passed."""
    field = config.model_fields.get(str(location[0])) if location else None
    limits = [
        f"{sign} {getattr(limit, name)}"
        for limit in (field.metadata if field else [])
        for name, sign in {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}.items()
        if hasattr(limit, name)
    ]
    return f"; allowed: {' and '.join(limits)}" if limits else ""
