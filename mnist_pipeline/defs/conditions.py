"""Automation conditions that look at data, not at clocks and not at who ran.

`AutomationCondition.eager()` runs an asset whenever something above it ran, also when nothing changed. Here an asset
runs when what it would be built from differs from what it was built from.
"""

import json
from typing import Any

import dagster as dg
from dagster import AutomationCondition as AC

from mnist_pipeline.environment import Environment

DATA_VERSION_TAG = "dagster/data_version"
CODE_VERSION_TAG = "dagster/code_version"
INPUT_DATA_VERSION_TAG = "dagster/input_data_version"
INPUT_EVENT_TAG = "dagster/input_event_pointer"


class DataOrCodeChanged(dg.AutomationCondition[dg.AssetKey]):
    """True while the asset would be built from something else than it was built from, and that was not tried yet.

    What it would be built from is its code version and the data version of each dependency, those in `ignoring` left
    out. Compared are states, not events, so a change is never missed: not while the asset runs, not between two
    evaluations, not while the daemon is down. What was tried is remembered from one evaluation to the next, so a run
    that failed, or that yielded nothing, is not repeated until something changes.

    For assets without partitions. Custom conditions are evaluated by the code server: the sensor needs
    `use_user_code_server=True`.
    """

    def __init__(self, ignoring: frozenset[dg.AssetKey] = frozenset()) -> None:
        self.ignoring = ignoring

    @property
    def name(self) -> str:
        return "data_or_code_changed"

    @property
    def description(self) -> str:
        return "The code version, or the data version of a dependency, is not what the asset was built from"

    def evaluate(self, context: dg.AutomationContext) -> dg.AutomationResult:
        """Return the candidates if the asset is out of date, else the empty subset."""
        current = self._current(context)
        memory = json.loads(context.cursor) if context.cursor else {"seen": None, "tried": None}
        requested = context.get_previous_requested_subset(context.key)
        tried = memory["seen"] if requested and not requested.is_empty else memory["tried"]
        up_to_date = current == self._built(context)
        if up_to_date:
            tried = None  # what was tried is done: if this state comes again after another one, it is new
        changed = not up_to_date and current != tried
        return dg.AutomationResult(
            context,
            context.candidate_subset if changed else context.get_empty_subset(),
            cursor=json.dumps({"seen": current, "tried": tried}),
        )

    def _current(self, context: dg.AutomationContext) -> dict[str, Any]:
        """Return the versions that the asset would be built from."""
        instance, graph = context.asset_graph_view.instance, context.asset_graph
        versions: dict[str, str | None] = {}
        for key in self._dependencies(context):
            record = instance.get_latest_data_version_record(key, is_source=not graph.get(key).is_materializable)
            versions[key.to_user_string()] = tags_of(record).get(DATA_VERSION_TAG)
        return {"code": graph.get(context.key).code_version, "data": versions}

    def _built(self, context: dg.AutomationContext) -> dict[str, Any] | None:
        """Return the versions that the asset was built from; None if it is missing."""
        record = context.asset_graph_view.instance.get_latest_data_version_record(context.key, is_source=False)
        if record is None:
            return None
        tags = tags_of(record)
        names = [key.to_user_string() for key in self._dependencies(context)]
        return {
            # For an asset without a code version Dagster records one that it made up.
            "code": tags.get(CODE_VERSION_TAG) if context.asset_graph.get(context.key).code_version else None,
            "data": {name: tags.get(f"{INPUT_DATA_VERSION_TAG}/{name}") for name in names},
        }

    def _dependencies(self, context: dg.AutomationContext) -> list[dg.AssetKey]:
        return sorted(context.asset_graph.get(context.key).parent_keys - self.ignoring)


class EnoughNewLabels(dg.AutomationCondition[dg.AssetKey]):
    """True while `parent` has so many labelled images more than when the asset was built from it; 0: never.

    Their numbers are in the metadata of the parent's materializations, by the names in `counted`.
    """

    def __init__(self, parent: dg.AssetKey, counted: tuple[str, ...], least: int) -> None:
        self.parent, self.counted, self.least = parent, counted, least

    @property
    def name(self) -> str:
        return "enough_new_labels"

    @property
    def description(self) -> str:
        return f"{self.least} or more labelled images that the asset was not built from"

    def evaluate(self, context: dg.AutomationContext) -> dg.AutomationResult:
        """Return the candidates if there are enough, else the empty subset."""
        instance = context.asset_graph_view.instance
        built = tags_of(instance.get_latest_data_version_record(context.key, is_source=False))
        event = built.get(f"{INPUT_EVENT_TAG}/{self.parent.to_user_string()}", "")
        enough = False
        if self.least and event.isdecimal():
            one = dg.AssetRecordsFilter(self.parent, storage_ids=[int(event)])
            then = instance.fetch_materializations(one, limit=1).records
            now = instance.fetch_materializations(self.parent, limit=1).records
            enough = bool(then and now) and self._count(now[0]) - self._count(then[0]) >= self.least
        return dg.AutomationResult(context, context.candidate_subset if enough else context.get_empty_subset())

    def _count(self, record: Any) -> int:
        metadata = record.asset_materialization.metadata
        return sum(int(metadata[name].value) for name in self.counted if name in metadata)


def tags_of(record: Any) -> dict[str, str]:
    """Return the tags of a data version record; none where there is no record."""
    return (record.event_log_entry.tags or {}) if record else {}


NEVER = (AC.initial_evaluation() & ~AC.initial_evaluation()).with_label("never, on request only")
"""The condition of what runs on request only."""


def cron_tick(variable: str) -> AC:
    """Return the condition of a tick of the schedule in `variable`, by its default until `scheduled` replaces it."""
    default = Environment.model_fields[variable.lower()].default
    return AC.cron_tick_passed(default, Environment.model_fields["cron_timezone"].default).with_label(variable)


def scheduled(condition: AC, environment: Environment) -> AC:
    """Return `condition` with the schedules and the number of labels of `environment` in place of the defaults."""
    for variable in ("RETRAIN_CRON", "RAW_DATA_CRON", "PREDICT_CRON", "BACKTEST_CRON"):
        tick = AC.cron_tick_passed(getattr(environment, variable.lower()), environment.cron_timezone)
        condition = condition.replace(variable, tick.with_label(variable))
    return condition.replace(AFTER_LABELS, new_labels(environment.retrain_after_labels))


AFTER_LABELS = "RETRAIN_AFTER_LABELS"


def new_labels(least: int = Environment.model_fields[AFTER_LABELS.lower()].default) -> AC:
    """Return the condition of so many labelled images that no candidate saw, by the default until it is replaced."""
    counted = ("labelled_digits_joined", "labelled_digits_held_out", "labelled_digits_relabelled")
    enough = EnoughNewLabels(dg.AssetKey("processed_mnist_data"), counted, least)
    return (enough | NEVER).with_label(AFTER_LABELS)  # a condition of one's own cannot have a label


def may_run() -> AC:
    """Return the condition that nothing stands in the way.

    Neither the asset nor a dependency is running or about to run, none is missing, and the blocking checks of the
    dependencies passed. (Dagster holds a failed blocking check against the rest of its own run only.)
    """
    return (
        ~AC.in_progress()
        & ~AC.any_deps_missing()
        & ~AC.any_deps_in_progress()
        & ~AC.any_deps_match(AC.will_be_requested()).with_label("a dependency is about to run")
        & AC.all_deps_blocking_checks_passed()
    )


def eager_if_data_changed(*, ignoring: frozenset[dg.AssetKey] = frozenset()) -> AC:
    """Return a condition like `eager`, but for versions: it holds when the data or the code really changed.

    It holds when the asset is missing, when its own code changed, or when the data version of a dependency changed.
    Unlike `AutomationCondition.eager()` not when a dependency merely ran or was observed again, not before the
    dependencies are done, and not again after a failure until something changes. A change that comes while the asset
    runs sets off one more run afterwards.
    """
    return (may_run() & DataOrCodeChanged(ignoring)).with_label("eager, if data or code changed")


def on_cron_if_data_changed(tick: AC, sooner: AC = NEVER) -> AC:
    """Return a condition like `on_cron`, but only if something had changed by the `tick`; or as soon as `sooner` holds.

    Unlike `AutomationCondition.on_cron()` it looks at versions, does not wait for dependencies to be updated after the
    tick, and does not let a missing asset wait for a tick.
    """
    settled = AC.newly_requested() | ~DataOrCodeChanged()  # by this condition, or by hand
    due = tick.since(settled).with_label("changed at the last tick")
    wanted = AC.missing() | due | sooner
    return (may_run() & wanted & DataOrCodeChanged()).with_label("on_cron, if data or code changed")


def on_cron(tick: AC) -> AC:
    """Return a condition that holds at every `tick`, whether anything changed or not, once nothing is in the way."""
    return (may_run() & tick.since(AC.newly_requested())).with_label("on_cron")


def on_cron_or_eager_if_data_changed(tick: AC, *, ignoring: frozenset[dg.AssetKey] = frozenset()) -> AC:
    """Return the condition `eager_if_data_changed` that also holds at every `tick`, whether anything changed or not."""
    ticked = tick.since(AC.newly_requested()).with_label("a tick has passed")
    changed = DataOrCodeChanged(ignoring)
    return (may_run() & (ticked | changed)).with_label("on_cron, or eager if data or code changed")
