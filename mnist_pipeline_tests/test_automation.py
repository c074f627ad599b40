"""The automation conditions over several ticks. (The live daemon is the next issue's.)"""

import datetime
from collections.abc import Callable
from typing import Any

import dagster as dg
import pytest

from mnist_pipeline.automation import conditions, on_cron_if_changed, when_data_changed

CRON = "0 3 * * *"


class Chain:
    """Two assets; `below` depends on `above` and `ignored`, and has the condition under test."""

    def __init__(self, condition: dg.AutomationCondition) -> None:
        self.versions = {"above": "1", "ignored": "1"}
        self.instance = dg.DagsterInstance.ephemeral()
        self.cursor: Any = None
        self.now = datetime.datetime(2026, 1, 5, 12, tzinfo=datetime.timezone.utc)

        @dg.asset
        def above():
            return dg.MaterializeResult(data_version=dg.DataVersion(self.versions["above"]))

        @dg.asset
        def ignored():
            return dg.MaterializeResult(data_version=dg.DataVersion(self.versions["ignored"]))

        @dg.asset(deps=[above, ignored], automation_condition=condition)
        def below():
            return dg.MaterializeResult(data_version=dg.DataVersion("any"))

        self.assets = [above, ignored, below]

    def make(self, **versions: str) -> None:
        self.versions |= versions
        dg.materialize(self.assets, selection=list(versions), instance=self.instance)

    def tick(self, hours: float = 0.1) -> bool:
        """Whether `below` was requested; it is built when it was."""
        self.now += datetime.timedelta(hours=hours)
        result = dg.evaluate_automation_conditions(
            self.assets, instance=self.instance, cursor=self.cursor, evaluation_time=self.now
        )
        self.cursor = result.cursor
        requested = result.total_requested > 0
        if requested:
            dg.materialize(self.assets, selection=["below"], instance=self.instance)
        return requested


@pytest.fixture
def chain() -> Callable[[dg.AutomationCondition], Chain]:
    return Chain


def test_data_that_changed_sets_it_off_once_and_data_that_did_not_never(chain):
    chain = chain(when_data_changed(ignoring=dg.AssetSelection.assets("ignored")))
    assert not chain.tick()  # nothing above it yet
    chain.make(above="1", ignored="1")
    assert [chain.tick() for _ in range(3)] == [True, False, False]
    chain.make(above="1")
    assert [chain.tick() for _ in range(2)] == [False, False]
    chain.make(above="2")
    assert [chain.tick() for _ in range(3)] == [True, False, False]
    chain.make(ignored="2")
    assert [chain.tick() for _ in range(2)] == [False, False]


def test_on_cron_it_waits_for_the_tick_and_for_a_change(chain):
    chain = chain(on_cron_if_changed(CRON, "UTC"))
    chain.make(above="1", ignored="1")
    assert [chain.tick() for _ in range(2)] == [True, False]  # missing: no waiting
    chain.make(above="2")
    assert not chain.tick()
    assert chain.tick(hours=24)
    assert not chain.tick()
    assert not chain.tick(hours=24)  # due, but nothing changed
    chain.make(above="3")
    assert [chain.tick() for _ in range(2)] == [True, False]  # still due from the quiet tick
    chain.make(above="4")
    assert not chain.tick()


def test_every_asset_but_the_one_on_request_has_a_condition():
    keys = {key.to_user_string() for key in conditions(CRON, CRON, "UTC")}
    assert keys == {
        "raw_mnist_data",
        "processed_mnist_data",
        "digit_classifier",
        "model_evaluation",
        "production_digit_classifier",
        "batch_digit_predictions",
    }
