"""Stored versions, scored again."""

from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from mnist_pipeline.defs.conditions import cron_tick, on_cron
from mnist_pipeline.defs.metadata import picture, table
from mnist_pipeline.defs.resources.stores import ModelStoreResource
from mnist_pipeline.defs.training import CRASH_RETRIES
from mnist_pipeline.ml.records import Splits


class BacktestConfig(dg.Config):
    """The versions that are scored again, and on how many earlier test sets."""

    versions: list[str] = Field([], description="Their names or the beginnings of them; the newest when none is given.")
    newest: int = Field(10, ge=1, le=1000, description="So many of the newest versions, and those in use.")
    earlier_test_sets: int = Field(10, ge=0, le=100, description="So many of the newest test sets of before.")


@dg.asset(
    group_name="experiments",
    kinds={"python"},
    code_version="1",
    retry_policy=CRASH_RETRIES,
    automation_condition=on_cron(cron_tick("BACKTEST_CRON")),
    check_specs=[
        dg.AssetCheckSpec(
            "all_versions_scored", asset="backtest", description="Every version could be asked about every set."
        )
    ],
)
def backtest(
    config: BacktestConfig, processed_mnist_data: Splits, model_store: ModelStoreResource
) -> Iterator[dg.MaterializeResult]:
    """The accuracy of stored versions on the test images, each corruption, held-out labels, and earlier test sets.

    It tells if a newer version has forgotten something, and how what is deployed does on the data of now. It decides
    nothing, and no candidate is chosen by it."""
    from mnist_pipeline.experiments import backtesting
    from mnist_pipeline.experiments.plots import backtest_heat_map
    from mnist_pipeline.ml.data import content_digest
    from mnist_pipeline.stores.errors import ModelStoreError

    try:
        state, versions = model_store.state(), model_store.versions()
        chosen = [model_store.resolve(name) for name in config.versions] or [
            name for number, name in enumerate(versions) if number < config.newest or name in state.in_use
        ]
        found = backtesting.backtest(
            model_store,
            processed_mnist_data,
            content_digest(processed_mnist_data.test),
            chosen,
            config.earlier_test_sets,
        )
    except ModelStoreError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    if not found.versions:
        why = next(iter(found.left_out.values()), "the store has none yet")
        raise dg.Failure(f"no version can be scored: {why}", allow_retries=False)
    rows = backtesting.table_rows(found)
    deployed = state.deployed.version if state.deployed else None
    of_deployed = next((row for row in rows if row["version"] == deployed), {})
    yield dg.MaterializeResult(
        metadata={
            "versions": len(found.versions),
            "sets": len(found.columns),
            "deployed": deployed,
            "accuracy_of_the_deployed": of_deployed.get(backtesting.CURRENT),
            "accuracies": table(rows),
            "heat_map": picture(backtest_heat_map(found, deployed), "accuracy of versions on sets of images"),
        },
        check_results=[
            dg.AssetCheckResult(
                check_name="all_versions_scored",
                passed=not found.left_out,
                severity=dg.AssetCheckSeverity.WARN,
                description="; ".join(f"{name}: {why}" for name, why in found.left_out.items()) or None,
            )
        ],
    )
