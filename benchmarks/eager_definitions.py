"""The same code location with Dagster's own `AutomationCondition.eager()` on every automated asset."""

import os

import dagster as dg

from mnist_pipeline.definitions import build_definitions
from mnist_pipeline.environment import Environment

usual = build_definitions(Environment.read(os.environ))
defs = dg.Definitions(
    assets=[
        asset.map_asset_specs(lambda spec: spec.replace_attributes(automation_condition=dg.AutomationCondition.eager()))
        if isinstance(asset, dg.AssetsDefinition) and asset.automation_conditions_by_key
        else asset
        for asset in usual.assets or []
    ],
    asset_checks=usual.asset_checks,
    jobs=usual.jobs,
    sensors=usual.sensors,
    executor=usual.executor,
    resources=usual.resources,
)
