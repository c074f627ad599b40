"""The alerts of records of Dagster's event log. No channel is known here."""

from collections.abc import Callable
from typing import Any

import dagster as dg

from mnist_pipeline.defs.alerts.alert import Alert, Fact
from mnist_pipeline.defs.assets.processed_mnist_data import processed_mnist_data
from mnist_pipeline.defs.assets.production_digit_classifier import production_digit_classifier
from mnist_pipeline.ml.manifest import Decision

DAGSTERS_WRAPPERS = {"DagsterExecutionStepExecutionError", "RetryRequested", "RetryRequestedFromPolicy"}
MAX_ERROR_LENGTH = 500


def described(record: dg.EventLogRecord, describe: Callable[[dg.EventLogRecord], Alert | None]) -> Alert | None:
    """Return the alert of an event; of one that this code did not write, made by hand or by another version, that."""
    try:
        return describe(record)
    except (KeyError, ValueError) as error:
        problem = _first_line(f"{type(error).__name__}: {error}")
        return Alert("unknown", "", f"an event of run {record.run_id} could not be described: {problem}")


def failure(instance: dg.DagsterInstance, run_id: str, webserver_url: str | None) -> Alert:
    """Tell of a failed run: failed steps with the first line of the real error, duration, model, data, and a link."""
    record = instance.get_run_record_by_id(run_id)
    if record is None:
        return Alert("failures", "", f"run {run_id} failed, and was deleted since")
    run = record.dagster_run
    took = ""
    if record.start_time and record.end_time:
        took = f" after {record.end_time - record.start_time:.0f} s"
    failures = instance.all_logs(run_id, of_type={dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE})
    events = [entry.dagster_event for entry in failures if entry.dagster_event]
    facts = [
        Fact("•", str(event.step_key), _first_line(real_error(event))) for event in events if event.is_step_failure
    ]
    if not facts:
        facts = [Fact(f"• {_first_line(event.message or 'no message')}") for event in events]
    if run.tags.get("dagster/will_retry") == "true":
        facts.append(Fact("It is started again."))
    for label, key, metadata in (
        ("deployed model", production_digit_classifier.key, "deployed"),
        ("data", processed_mnist_data.key, "sha256"),
    ):
        if latest := instance.get_latest_materialization_event(key):
            facts.append(Fact(label, str(values(latest.asset_materialization).get(metadata, "unknown"))))
    return Alert("failures", _subject(run), f"failed{took}: {_where(run_id, webserver_url)}", facts=tuple(facts))


def decision(record: dg.EventLogRecord) -> Alert | None:
    """Tell of a promotion, a refusal, or a candidate that waits for approval, with the scores of both models.

    Other decisions are None.
    """
    decision = Decision.model_validate(values(record.asset_observation))
    facts = [Fact("candidate", decision.version, _accuracy(decision.test_accuracy))]
    if decision.incumbent_version:
        facts.append(Fact("incumbent", decision.incumbent_version, _accuracy(decision.incumbent_test_accuracy)))
    if decision.outcome == "promoted":
        return Alert(
            "promotions",
            "deployed",
            f"{decision.version} ({decision.strategy}): {decision.reason}",
            decision.version,
            tuple(facts),
        )
    if decision.outcome == "waiting":
        facts.append(Fact(f"approve it with: python -m mnist_pipeline approve {decision.version} --reason ..."))
        title = "waits for approval"
        return Alert("approvals", title, f"{decision.version}: {decision.reason}", decision.version, tuple(facts))
    if decision.outcome == "refused":
        return Alert("refusals", "refused", f"{decision.version}: {decision.reason}", decision.version, tuple(facts))
    return None


def drift(batch: dg.AssetMaterialization | None, run_id: str, webserver_url: str | None) -> Alert | None:
    """Tell which statistics of a batch drifted, and what to label; None if none did."""
    found = values(batch)
    if not found.get("drifted_statistics"):
        return None
    model, where = str(found["model"]), _where(run_id, webserver_url)
    text = f"({found['drifted']}): {found['images']} images by {model}, {where}"
    advice = (Fact(str(found["what_to_label"])),) if "what_to_label" in found else ()
    return Alert("drift", "predictions look unlike the training data", text, model, advice)


def values(event: dg.AssetMaterialization | dg.AssetObservation | None) -> dict[str, Any]:
    """Return the plain values of an event's metadata."""
    assert event, "the log was asked for events of this kind"
    return {name: value.value for name, value in event.metadata.items()}


def real_error(event: dg.DagsterEvent) -> str:
    """Return the message of the error that the step raised, not of Dagster's wrappers around it."""
    data = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        return data.user_failure_data.description
    error = data.error
    while error and error.cls_name in DAGSTERS_WRAPPERS and error.cause:
        error = error.cause
    return error.message if error else "no message"


def _subject(run: dg.DagsterRun) -> str:
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
    return lines[0][:MAX_ERROR_LENGTH] if lines else "no message"
