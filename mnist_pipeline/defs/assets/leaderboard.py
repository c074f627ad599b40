"""The ranking of a sweep."""

from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from mnist_pipeline.defs.assets.trial import trial
from mnist_pipeline.defs.conditions import NEVER
from mnist_pipeline.defs.metadata import picture, table
from mnist_pipeline.defs.resources.stores import ModelStoreResource
from mnist_pipeline.stores.objects import SWEEP_NAME


class LeaderboardConfig(dg.Config):
    """The sweep that is ranked."""

    sweep: str | None = Field(
        None, pattern=SWEEP_NAME, description="Its name; the sweep that was started last when not given."
    )


@dg.asset(
    group_name="experiments",
    kinds={"python"},
    code_version="1",
    deps=[trial],
    automation_condition=NEVER,  # the sensor `sweeps` starts it when a sweep is complete
    check_specs=[
        dg.AssetCheckSpec("all_trials_ranked", asset="leaderboard", description="Every trial is done and succeeded.")
    ],
)
def leaderboard(
    context: dg.AssetExecutionContext, config: LeaderboardConfig, model_store: ModelStoreResource
) -> Iterator[dg.MaterializeResult]:
    """The configurations of a sweep by the mean of their seeds, on validation images only.

    The test images have no part in it: `candidate_job` sends the best one to evaluation and gate, which look at them
    once."""
    import yaml

    from mnist_pipeline.experiments import leaderboard as ranking
    from mnist_pipeline.experiments.plots import score_against_cost, score_by_setting
    from mnist_pipeline.experiments.trials import Sweeps
    from mnist_pipeline.stores.errors import ModelStoreError
    from mnist_pipeline.stores.objects import EXPERIMENTS, LEADERBOARD

    sweeps = Sweeps(model_store)
    try:
        record = sweeps.read(config.sweep or sweeps.newest())
        board = ranking.leaderboard(record)
    except ModelStoreError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    best = board.best
    problems = [*(f"{name}: {why}" for name, why in board.failed.items())]
    if board.open:
        problems.append(f"{board.open} trials are not done yet")
    cost, by_setting = score_against_cost(board), score_by_setting(board)
    page = f"{EXPERIMENTS}{record.sweep.name}/{LEADERBOARD}"
    model_store.put(page, ranking.leaderboard_page(board, cost, by_setting))
    settings = yaml.safe_dump(ranking.as_config(board, best), sort_keys=False)
    yield dg.MaterializeResult(
        metadata={
            "sweep": record.sweep.name,
            "best": record.name_of(best.best_trial),
            "best_model": best.best_trial.version,
            "validation_accuracy": best.validation_accuracy,
            "validation_loss": best.validation_loss,
            "trials": sum(len(row.trials) for row in board.rows),
            "failed_trials": len(board.failed),
            "leaderboard": table(ranking.table_rows(board)),
            "score_against_cost": picture(cost, "the metric over the cost of a training"),
            "score_by_setting": picture(by_setting, "the metric over each setting"),
            "page": dg.MetadataValue.path(f"{model_store.address}/{page}"),
            "importance": dg.MetadataValue.json(board.importance),
            "settings_of_the_best": dg.MetadataValue.md(f"```yaml\n{settings}```"),
            "send_it_to_the_gate": dg.MetadataValue.text(
                f"candidate_job, or: python -m mnist_pipeline candidate {record.sweep.name}"
            ),
        },
        data_version=dg.DataVersion(f"{record.sweep.name}-{record.digest()[:16]}"),
        check_results=[
            dg.AssetCheckResult(
                passed=not problems,
                severity=dg.AssetCheckSeverity.WARN,
                check_name="all_trials_ranked",
                description="; ".join(problems) or None,
            )
        ],
    )
