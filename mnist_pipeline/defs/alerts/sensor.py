"""The sensors that tell the event log to the channels, one sensor each.

Its cursor moves only past what the channel has taken, so an alert that could not be sent is sent later, and the tick
says why it was not. An alert can come twice where a tick was killed between the channel's answer and its own end.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import dagster as dg
from pydantic import BaseModel

from mnist_pipeline.defs.alerts import events
from mnist_pipeline.defs.alerts.alert import Alert
from mnist_pipeline.defs.alerts.channel import AskedToWait, Channel, ChannelSetup, NotTaken
from mnist_pipeline.defs.assets.batch_digit_predictions import batch_digit_predictions
from mnist_pipeline.defs.assets.production_digit_classifier import production_digit_classifier

TICK_SECONDS = 20
"""No further alert is begun after so long: Dagster gives a tick 60 s."""

ALERTS_PER_TICK = 5
REMEMBERED_DECISIONS = 20
UNSET = "unset"
"""Dagster keeps the old cursor when it is given an empty one."""


class Position(BaseModel):
    """A place in the event log, as ids of its records, and the time from which the channel may be asked again."""

    failures: int = 0
    decisions: int = 0
    batches: int = 0
    told_decisions: list[str] = []
    told_batch: str = ""
    not_before: float = 0


class Step(NamedTuple):
    """An alert, or None where there is nothing to tell, and the position once it is sent."""

    alert: Alert | None
    after: Position


def alert_sensor(setup: ChannelSetup, webserver_url: str | None, every_seconds: int) -> dg.SensorDefinition:
    """Return the sensor that tells a channel what happened since its last tick.

    It skips, with the reason in its tick, while a variable of the channel is missing.
    """

    @dg.sensor(
        name=f"{setup.name}_alerts",
        description=f"Tells {setup.name} of failed runs, decisions of the gate and drifting predictions.",
        required_resource_keys={setup.resource_key} if setup.resource else set(),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=every_seconds,
    )
    def alerts(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        if setup.missing:
            reason = f"no message was sent, because {' and '.join(setup.missing)} is not set"
            return dg.SensorResult(skip_reason=reason, cursor=UNSET)
        if context.cursor in (None, UNSET):
            start = _end_of_log(context.instance)
            return dg.SensorResult(skip_reason="messages are sent from now on", cursor=start.model_dump_json())
        start = Position.model_validate_json(context.cursor)
        steps = _steps(context.instance, start, setup.kinds, webserver_url)
        return _deliver(setup.name.capitalize(), getattr(context.resources, setup.resource_key), start, steps)

    return alerts


def _deliver(name: str, channel: Channel, start: Position, steps: Iterator[Step]) -> dg.SensorResult:
    """Send in order.

    What cannot be sent fails the tick if it is the first alert, so that the tick is red; otherwise the position after
    those before it is kept, and the next tick begins with it.
    """
    if (wait := start.not_before - time.time()) > 0:
        return dg.SensorResult(skip_reason=f"{name} asked to wait, {wait:.0f} s more", cursor=start.model_dump_json())
    position, sent, reason, began = start, 0, None, time.monotonic()
    for step in steps:
        if step.alert is not None:
            try:
                channel.send(step.alert)
            except AskedToWait as wish:
                position = position.model_copy(update={"not_before": time.time() + wish.seconds})
                reason = f"{name} took {sent} messages and asked to wait {wish.seconds:.0f} s with the next"
                reason += f": {wish.why}" if wish.why else ""
                break
            except NotTaken as error:
                if not sent:
                    raise
                reason = f"{name} took {sent} messages, but not the next one, which is tried again: {error}"
                break
            sent += 1
        position = step.after
        if sent == ALERTS_PER_TICK or time.monotonic() - began > TICK_SECONDS:
            break
    reason = reason or (f"sent {sent} messages" if sent else "nothing to send")
    return dg.SensorResult(skip_reason=reason, cursor=position.model_dump_json())


def _steps(
    instance: dg.DagsterInstance, start: Position, kinds: frozenset[str], webserver_url: str | None
) -> Iterator[Step]:
    """Yield the alerts since `start`, oldest first in each of the three kinds of records."""

    def wanted(alert: Alert | None, *of: str) -> Alert | None:
        return alert if alert and (alert.kind in kinds or (alert.kind == "unknown" and kinds & set(of))) else None

    position = start
    for record in _failures(instance, start.failures):
        position = position.model_copy(update={"failures": record.storage_id})
        alert = events.described(record, lambda r: events.failure(instance, r.run_id, webserver_url))
        yield Step(wanted(alert, "failures"), position)
    for record in _decisions(instance, start.decisions):
        position = position.model_copy(update={"decisions": record.storage_id})
        told_as = events.values(record.asset_observation).get("id") or f"record {record.storage_id}"
        decision_id, alert = str(told_as), None
        if decision_id not in position.told_decisions:  # a step that was tried again reports its decision again
            alert = events.described(record, events.decision)
            told = [*position.told_decisions, decision_id][-REMEMBERED_DECISIONS:]
            position = position.model_copy(update={"told_decisions": told})
        yield Step(wanted(alert, "promotions", "approvals", "refusals"), position)
    for record in _batches(instance, start.batches):
        position = position.model_copy(update={"batches": record.storage_id})
        told_as = events.values(record.asset_materialization).get("predictions") or f"record {record.storage_id}"
        table, alert = str(told_as), None
        if table != position.told_batch:  # the same table is reported again each night
            alert = events.described(record, lambda r: events.drift(r.asset_materialization, r.run_id, webserver_url))
            position = position.model_copy(update={"told_batch": table})
        yield Step(wanted(alert, "drift"), position)


def _failures(instance: dg.DagsterInstance, after: int | None) -> Sequence[dg.EventLogRecord]:
    wanted = dg.RunStatusChangeRecordsFilter(dg.DagsterEventType.RUN_FAILURE, after_storage_id=after)
    return instance.fetch_run_status_changes(wanted, **_page(after)).records


def _decisions(instance: dg.DagsterInstance, after: int | None) -> Sequence[dg.EventLogRecord]:
    wanted = dg.AssetRecordsFilter(production_digit_classifier.key, after_storage_id=after)
    return instance.fetch_observations(wanted, **_page(after)).records


def _batches(instance: dg.DagsterInstance, after: int | None) -> Sequence[dg.EventLogRecord]:
    wanted = dg.AssetRecordsFilter(batch_digit_predictions.key, after_storage_id=after)
    return instance.fetch_materializations(wanted, **_page(after)).records


def _page(after: int | None) -> dict[str, Any]:
    """The oldest records behind a position; the newest one where there is no position."""
    return {"limit": 1, "ascending": False} if after is None else {"limit": ALERTS_PER_TICK, "ascending": True}


def _end_of_log(instance: dg.DagsterInstance) -> Position:
    """Past everything there is: a new channel is not flooded with history."""
    kinds = {"failures": _failures, "decisions": _decisions, "batches": _batches}
    newest = {kind: fetch(instance, None) for kind, fetch in kinds.items()}
    return Position(**{kind: records[0].storage_id for kind, records in newest.items() if records})
