"""Messages to Slack: failed runs, decisions of the gate, predictions that look unlike the training data.

One sensor reads the event log from where it stopped. Its cursor moves only past what Slack has taken, so a message
that could not be sent is sent later, and the tick says why it was not. A message can come twice where a tick was killed
between Slack's answer and the end of the tick.
"""

import html
import time
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from typing import Any, NamedTuple

import dagster as dg
from pydantic import BaseModel, SecretStr

from mnist_pipeline.assets.data import processed_mnist_data
from mnist_pipeline.assets.deployment import production_digit_classifier
from mnist_pipeline.assets.predictions import batch_digit_predictions
from mnist_pipeline.ml.records import Decision

POST_TIMEOUT_SECONDS = 10
TICK_SECONDS = 20
"""After so long no further message is begun: Dagster gives a tick 60 s."""

MESSAGES_PER_TICK = 5
REMEMBERED_DECISIONS = 20
DAGSTERS_WRAPPERS = {"DagsterExecutionStepExecutionError", "RetryRequested", "RetryRequestedFromPolicy"}
UNSET = "unset"
"""Dagster keeps the old cursor when it is given an empty one."""

MAX_ERROR_LENGTH = 500
DEFAULT_RETRY_AFTER_SECONDS = 30


class Slack(NamedTuple):
    """Where messages go, and which."""

    token: SecretStr | None
    channel: str | None
    kinds: frozenset[str]
    """Of failures, promotions, refusals, drift."""
    api_url: str
    webserver_url: str | None = None

    def missing(self) -> list[str]:
        """The variables without which nothing can be sent."""
        needed = {"SLACK_BOT_TOKEN": self.token, "SLACK_CHANNEL": self.channel}
        return [name for name, value in needed.items() if not value]

    def post(self, text: str) -> None:
        """Raises SlackClientError for what Slack refuses, OSError or HTTPException where it cannot be reached."""
        from slack_sdk import WebClient

        assert self.token and self.channel
        client = WebClient(
            self.token.get_secret_value(), base_url=self.api_url, timeout=POST_TIMEOUT_SECONDS, retry_handlers=[]
        )
        client.chat_postMessage(channel=self.channel, text=text, unfurl_links=False)


class Position(BaseModel):
    """How far the event log was read, as ids of its records, and when Slack may be asked again."""

    failures: int = 0
    decisions: int = 0
    batches: int = 0
    told_decisions: list[str] = []
    told_batch: str = ""
    not_before: float = 0


class Message(NamedTuple):
    """A text, or None where there is nothing to say, and the position once it is sent."""

    text: str | None
    after: Position


def slack_sensor(slack: Slack, every_seconds: int) -> dg.SensorDefinition:
    """Posts what happened since the last tick; skips, with the reason in its tick, while a variable is missing."""

    @dg.sensor(
        name="slack_alerts",
        description="Posts failed runs, decisions of the gate and drifting predictions to Slack.",
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=every_seconds,
    )
    def slack_alerts(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        if missing := slack.missing():
            reason = f"no message was sent, because {' and '.join(missing)} is not set"
            return dg.SensorResult(skip_reason=reason, cursor=UNSET)
        if context.cursor in (None, UNSET):
            start = _end_of_log(context.instance)
            return dg.SensorResult(skip_reason="messages are sent from now on", cursor=start.model_dump_json())
        return _deliver(slack, context.instance, Position.model_validate_json(context.cursor))

    return slack_alerts


def _deliver(slack: Slack, instance: dg.DagsterInstance, start: Position) -> dg.SensorResult:
    """Post in order. What cannot be sent fails the tick if it is the first message, so that the tick is red;
    otherwise the position after those before it is kept, and the next tick begins with it."""
    from slack_sdk.errors import SlackApiError, SlackClientError

    if (wait := start.not_before - time.time()) > 0:
        return dg.SensorResult(skip_reason=f"Slack asked to wait, {wait:.0f} s more", cursor=start.model_dump_json())
    position, sent, reason, began = start, 0, None, time.monotonic()
    for message in _messages(slack, instance, start):
        if message.text is not None:
            try:
                slack.post(message.text)
            except (SlackClientError, HTTPException, OSError) as error:
                if isinstance(error, SlackApiError) and error.response.status_code == 429:
                    seconds = float(error.response.headers.get("Retry-After", DEFAULT_RETRY_AFTER_SECONDS))
                    position = position.model_copy(update={"not_before": time.time() + seconds})
                    reason = f"Slack took {sent} messages and asked to wait {seconds:.0f} s with the next"
                elif not sent:
                    raise
                else:
                    reason = f"Slack took {sent} messages, but not the next one, which is tried again: {error}"
                break
            sent += 1
        position = message.after
        if sent == MESSAGES_PER_TICK or time.monotonic() - began > TICK_SECONDS:
            break
    reason = reason or (f"sent {sent} messages" if sent else "nothing to send")
    return dg.SensorResult(skip_reason=reason, cursor=position.model_dump_json())


def _messages(slack: Slack, instance: dg.DagsterInstance, start: Position) -> Iterator[Message]:
    position, url = start, slack.webserver_url
    for record in _failures(instance, start.failures):
        position = position.model_copy(update={"failures": record.storage_id})
        text = (
            _described(record, lambda r: failure_text(instance, r.run_id, url)) if "failures" in slack.kinds else None
        )
        yield Message(text, position)
    for record in _decisions(instance, start.decisions):
        position = position.model_copy(update={"decisions": record.storage_id})
        decision_id = str(_values(record.asset_observation).get("id"))
        text = None
        if decision_id not in position.told_decisions:  # a step that was tried again reports its decision again
            text = _described(record, lambda r: decision_text(_decision(r), slack.kinds))
            told = [*position.told_decisions, decision_id][-REMEMBERED_DECISIONS:]
            position = position.model_copy(update={"told_decisions": told})
        yield Message(text, position)
    for record in _batches(instance, start.batches):
        position = position.model_copy(update={"batches": record.storage_id})
        table, text = str(_values(record.asset_materialization).get("predictions")), None
        if table != position.told_batch:  # the same table is reported again each night
            text = _described(record, lambda r: drift_text(r.asset_materialization, r.run_id, url))
            position = position.model_copy(update={"told_batch": table})
        yield Message(text if "drift" in slack.kinds else None, position)


def _described(record: dg.EventLogRecord, describe: Callable[[dg.EventLogRecord], str | None]) -> str | None:
    """The text of an event; of one that is not as this code writes them, made by hand or by another version, that."""
    try:
        return describe(record)
    except (KeyError, ValueError) as error:
        problem = _first_line(f"{type(error).__name__}: {error}")
        return f":grey_question: an event of run {record.run_id} could not be described: {problem}"


def _decision(record: dg.EventLogRecord) -> Decision:
    return Decision.model_validate(_values(record.asset_observation))


def failure_text(instance: dg.DagsterInstance, run_id: str, webserver_url: str | None) -> str:
    """Job, failed steps with the first line of the real error, duration, model, data version, and where to look."""
    record = instance.get_run_record_by_id(run_id)
    if record is None:
        return f":red_circle: run {run_id} failed, and was deleted since"
    run = record.dagster_run
    took = ""
    if record.start_time and record.end_time:
        took = f" after {record.end_time - record.start_time:.0f} s"
    lines = [f":red_circle: *{_what(run)}* failed{took}: {_where(run_id, webserver_url)}"]
    failures = instance.all_logs(run_id, of_type={dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE})
    events = [entry.dagster_event for entry in failures if entry.dagster_event]
    steps = [event for event in events if event.is_step_failure]
    for event in steps:
        lines.append(f"• `{event.step_key}`: {_first_line(real_error(event))}")
    if not steps:
        lines += [f"• {_first_line(event.message or 'no message')}" for event in events]
    if run.tags.get("dagster/will_retry") == "true":
        lines.append("It is started again.")
    for name, key, metadata in (
        ("deployed model", production_digit_classifier.key, "deployed"),
        ("data", processed_mnist_data.key, "sha256"),
    ):
        if latest := instance.get_latest_materialization_event(key):
            lines.append(f"{name}: `{_values(latest.asset_materialization).get(metadata, 'unknown')}`")
    return "\n".join(lines)


def decision_text(decision: Decision, kinds: frozenset[str]) -> str | None:
    """A promotion or a refusal, with the scores of both models; None for what is not to be told."""
    scores = [f"candidate `{decision.version}`: {_accuracy(decision.test_accuracy)}"]
    if decision.incumbent_version:
        scores.append(f"incumbent `{decision.incumbent_version}`: {_accuracy(decision.incumbent_test_accuracy)}")
    details = "\n".join([_escape(decision.reason), *scores])
    if decision.outcome == "promoted" and "promotions" in kinds:
        return f":rocket: *deployed* `{decision.version}` ({decision.strategy}): {details}"
    if decision.outcome == "refused" and "refusals" in kinds:
        return f":no_entry: *refused* `{decision.version}`: {details}"
    return None


def drift_text(batch: dg.AssetMaterialization | None, run_id: str, webserver_url: str | None) -> str | None:
    """What drifted; None if nothing did."""
    values = _values(batch)
    if not values.get("drifted_statistics"):
        return None
    return (
        f":warning: *predictions look unlike the training data* ({values['drifted']}): {values['images']} images "
        f"by `{values['model']}`, {_where(run_id, webserver_url)}"
    )


def real_error(event: dg.DagsterEvent) -> str:
    """The message of the error that the step raised, not of Dagster's wrappers around it."""
    data = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        return data.user_failure_data.description
    error = data.error
    while error and error.cls_name in DAGSTERS_WRAPPERS and error.cause:
        error = error.cause
    return error.message if error else "no message"


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
    return {"limit": 1, "ascending": False} if after is None else {"limit": MESSAGES_PER_TICK, "ascending": True}


def _end_of_log(instance: dg.DagsterInstance) -> Position:
    """Past everything there is: a new channel is not flooded with history."""
    kinds = {"failures": _failures, "decisions": _decisions, "batches": _batches}
    newest = {kind: fetch(instance, None) for kind, fetch in kinds.items()}
    return Position(**{kind: records[0].storage_id for kind, records in newest.items() if records})


def _values(event: dg.AssetMaterialization | dg.AssetObservation | None) -> dict[str, Any]:
    """The plain values of an event's metadata."""
    assert event, "the log was asked for events of this kind"
    return {name: value.value for name, value in event.metadata.items()}


def _what(run: dg.DagsterRun) -> str:
    """The job, or for runs that Dagster puts together itself, the assets."""
    if run.job_name.startswith("__") and run.asset_selection:
        return ", ".join(sorted(key.to_user_string() for key in run.asset_selection))
    return run.job_name


def _where(run_id: str, webserver_url: str | None) -> str:
    return f"{webserver_url.rstrip('/')}/runs/{run_id}" if webserver_url else f"run {run_id}"


def _accuracy(value: float | None) -> str:
    return "not measured" if value is None else f"test accuracy {value:.4f}"


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return _escape(lines[0][:MAX_ERROR_LENGTH]) if lines else "no message"


def _escape(text: str) -> str:
    """As Slack's message syntax wants it: &, < and > only."""
    return html.escape(text, quote=False)
