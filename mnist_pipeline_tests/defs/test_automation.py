"""The automation conditions, tick by tick. (On the live daemon: test_live.)"""

import datetime
from collections.abc import Callable
from typing import Any

import boto3
import dagster as dg
import pytest

from mnist_pipeline.definitions import build_definitions, load_assets
from mnist_pipeline.defs.conditions import (
    NEVER,
    EnoughNewLabels,
    eager_if_data_changed,
    new_labels,
    on_cron_if_data_changed,
    on_cron_or_eager_if_data_changed,
)
from mnist_pipeline.environment import Environment

CRON = "0 3 * * *"
IGNORED = dg.AssetKey("ignored")


def tick(cron: str, timezone: str = "UTC") -> dg.AutomationCondition:
    return dg.AutomationCondition.cron_tick_passed(cron, timezone)


class Chain:
    """`above` and `ignored` -> `middle` -> `below`; both of these have the condition under test."""

    def __init__(self, condition: dg.AutomationCondition) -> None:
        self.versions = {"above": "1", "ignored": "1", "middle": "1"}
        self.broken: set[str] = set()
        self.silent: set[str] = set()
        self.code_version = "1"
        self.condition = condition
        self.instance = dg.DagsterInstance.ephemeral()
        self.cursor: Any = None
        self.now = datetime.datetime(2026, 1, 5, 12, tzinfo=datetime.UTC)

    @property
    def assets(self) -> list[dg.AssetsDefinition]:
        def build(name: str, **arguments: Any) -> dg.AssetsDefinition:
            @dg.asset(name=name, output_required=False, code_version=self.code_version, **arguments)
            def compute(context: dg.AssetExecutionContext):
                if name in self.broken:
                    raise dg.Failure("broken")
                if name not in self.silent:
                    yield dg.Output(None, data_version=dg.DataVersion(self.versions.get(name, "any")))

            return compute

        conditioned: dict[str, Any] = {"automation_condition": self.condition}
        return [
            build("above"),
            build("ignored"),
            build("middle", deps=["above", "ignored"], **conditioned),
            build("below", deps=["middle"], **conditioned),
        ]

    def make(self, **versions: str) -> None:
        """Materialize these assets, by hand, with these data versions."""
        self.versions |= versions
        dg.materialize(self.assets, selection=list(versions), instance=self.instance, raise_on_error=False)

    def evaluate(self, hours: float = 0.1) -> list[str]:
        """What is requested, without building it."""
        self.now += datetime.timedelta(hours=hours)
        result = dg.evaluate_automation_conditions(
            self.assets, instance=self.instance, cursor=self.cursor, evaluation_time=self.now
        )
        self.cursor = result.cursor
        return sorted(r.key.to_user_string() for r in result.results if not r.true_subset.is_empty)

    def tick(self, hours: float = 0.1) -> list[str]:
        """What is requested; it is built, too."""
        requested = self.evaluate(hours)
        for name in requested:
            self.make(**{name: self.versions.get(name, "any")})
        return requested

    def settle(self) -> list[str]:
        """All that is built until nothing is requested any more."""
        built: list[str] = []
        for _ in range(10):
            if not (requested := self.tick()):
                return built
            built += requested
        raise AssertionError(f"it never ends: {built}")


@pytest.fixture
def built() -> Chain:
    chain = Chain(eager_if_data_changed(ignoring=frozenset({IGNORED})))
    chain.make(above="1", ignored="1")
    assert chain.settle() == ["middle", "below"]
    return chain


def nothing(chain: Chain) -> None:
    pass


def ran_again(chain: Chain) -> None:
    chain.make(above="1")


def changed(chain: Chain) -> None:
    chain.make(above="2")


def changed_and_middle_does_too(chain: Chain) -> None:
    chain.versions["middle"] = "2"
    chain.make(above="2")


def changed_and_back(chain: Chain) -> None:
    chain.make(above="2")
    chain.make(above="1")


def ignored_changed(chain: Chain) -> None:
    chain.make(ignored="2")


def new_code(chain: Chain) -> None:
    chain.code_version = "2"


def built_by_hand_then_changed_back(chain: Chain) -> None:
    """What automation built before is what it has to build again."""
    chain.make(above="2")
    chain.make(middle="1")
    assert chain.settle() == []
    chain.make(above="1")


def built_by_hand(chain: Chain) -> None:
    chain.make(above="2", middle="2")
    chain.make(below="any")


def observed(chain: Chain) -> None:
    chain.instance.report_runless_asset_event(dg.AssetObservation("middle", metadata={"epoch": 1}))


@pytest.mark.parametrize(
    ("event", "runs"),
    [
        (nothing, []),
        (ran_again, []),
        (changed, ["middle"]),
        (changed_and_middle_does_too, ["middle", "below"]),
        (changed_and_back, []),
        (ignored_changed, []),
        (new_code, ["middle", "below"]),
        (built_by_hand, []),
        (built_by_hand_then_changed_back, ["middle"]),
        (observed, []),
    ],
)
def test_what_sets_it_off(built: Chain, event: Callable[[Chain], None], runs: list[str]) -> None:
    event(built)
    assert built.settle() == runs


@pytest.mark.parametrize(("event", "runs"), [(changed, ["middle"]), (ran_again, []), (new_code, ["middle", "below"])])
def test_what_came_while_the_daemon_was_down_is_found(
    built: Chain, event: Callable[[Chain], None], runs: list[str]
) -> None:
    built.cursor = None  # the worst case: its memory is gone as well
    event(built)
    assert built.settle() == runs


def test_nothing_is_built_before_what_it_depends_on() -> None:
    chain = Chain(eager_if_data_changed())
    assert chain.settle() == []
    chain.make(above="1")
    assert chain.settle() == []
    chain.make(ignored="1")
    assert [chain.tick() for _ in range(3)] == [["middle"], ["below"], []]


def test_after_a_failure_it_waits_for_the_next_change(built: Chain) -> None:
    built.broken = {"middle"}
    built.make(above="2")
    assert built.settle() == ["middle"]
    built.make(above="2")
    assert built.settle() == []
    built.broken, built.versions["middle"] = set(), "2"
    built.make(above="3")
    assert built.settle() == ["middle", "below"]


def test_a_failure_of_the_very_first_build_is_not_repeated_either() -> None:
    chain = Chain(eager_if_data_changed())
    chain.broken = {"middle"}
    chain.make(above="1", ignored="1")
    assert chain.settle() == ["middle"]


def test_what_yields_nothing_is_not_asked_again_and_nothing_follows(built: Chain) -> None:
    built.silent = {"middle"}
    built.make(above="2")
    assert built.settle() == ["middle"]


@pytest.mark.parametrize("moment", ["before the next evaluation", "after it"])
def test_a_change_that_comes_while_it_runs_sets_off_exactly_one_more_run(built: Chain, moment: str) -> None:
    built.make(above="2")
    assert built.evaluate() == ["middle"]
    # The run has started with the second version, as its record will say ...
    running = dg.AssetMaterialization(
        "middle",
        tags={
            "dagster/data_version": "1",
            "dagster/code_version": "1",
            "dagster/input_data_version/above": "2",
            "dagster/input_data_version/ignored": "1",
        },
    )
    # ... when the third comes.
    if moment == "after it":
        assert built.evaluate() == []
    built.make(above="3")
    built.instance.report_runless_asset_event(running)
    assert built.settle() == ["middle"]


def test_a_run_that_already_took_the_later_change_is_not_repeated(built: Chain) -> None:
    built.make(above="2")
    assert built.evaluate() == ["middle"]
    built.make(above="3")
    built.make(middle="1")  # the requested run begins late
    assert built.settle() == []


def test_on_cron_it_waits_for_a_tick_and_runs_only_if_something_changed() -> None:
    chain = Chain(on_cron_if_data_changed(tick(CRON)))
    chain.make(above="1", ignored="1")
    assert chain.settle() == ["middle", "below"]  # missing: no waiting
    chain.make(above="2")
    assert chain.settle() == []
    assert chain.tick(hours=24) == ["middle"]
    assert chain.tick(hours=24) == []  # due, but nothing changed
    chain.make(above="3")
    assert chain.tick(hours=1) == []  # not due
    assert chain.tick(hours=24) == ["middle"]
    chain.make(above="4")
    assert chain.tick(hours=1) == []  # once a tick


def after_a_tick_in_vain() -> Chain:
    """The tick came while a dependency was missing; it is there again now."""
    chain = Chain(on_cron_if_data_changed(tick(CRON)))
    chain.make(above="1", ignored="1")
    chain.settle()
    chain.make(above="2")
    chain.instance.wipe_assets([IGNORED])
    assert chain.tick(hours=24) == []
    chain.make(ignored="1")
    return chain


def test_a_tick_that_passes_while_it_cannot_run_is_not_lost() -> None:
    chain = after_a_tick_in_vain()
    assert chain.tick() == ["middle"]


def test_a_tick_whose_change_was_taken_by_hand_is_over() -> None:
    chain = after_a_tick_in_vain()
    chain.make(middle="1")
    assert chain.settle() == []
    chain.make(above="3")
    assert chain.settle() == []


@pytest.mark.parametrize("running", ["above", "middle"])
def test_it_waits_while_it_or_a_dependency_runs(built: Chain, running: str) -> None:
    job = dg.Definitions(assets=built.assets, jobs=[dg.define_asset_job("job", [running])]).resolve_job_def("job")
    built.make(above="2")
    run = built.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    assert built.settle() == []
    built.instance.report_run_failed(run)
    assert built.settle() == ["middle"]


def test_the_time_zone_counts() -> None:
    chain = Chain(on_cron_if_data_changed(tick("0 20 * * *", "Asia/Tokyo")))  # 11:00 UTC
    chain.make(above="1", ignored="1")
    chain.settle()
    chain.make(above="2")
    assert chain.tick(hours=20) == []  # past 20:00 UTC, not yet 20:00 in Tokyo
    assert chain.tick(hours=4) == ["middle"]


def test_on_cron_or_change_it_runs_at_each_tick_too() -> None:
    chain = Chain(on_cron_or_eager_if_data_changed(tick(CRON), ignoring=frozenset({IGNORED})))
    chain.make(above="1", ignored="1")
    assert chain.settle() == ["middle", "below"]
    assert "middle" in chain.tick(hours=24)
    chain.settle()
    chain.make(above="2")
    assert chain.settle() == ["middle"]
    chain.make(ignored="2")
    assert chain.settle() == []


def conditions(**variables: str) -> dict[str, dg.AutomationCondition]:
    """The condition of each asset of a deployment."""
    assets, _ = load_assets(Environment.read(variables))
    return {asset.key.to_user_string(): asset.automation_conditions_by_key[asset.key] for asset in assets}


def test_only_assets_on_request_never_run_by_themselves() -> None:
    assert {name for name, condition in conditions().items() if condition == NEVER} == {
        *("digit_predictions", "trial", "leaderboard")
    }


def test_each_variable_reaches_its_condition() -> None:
    """One other value, and exactly that asset gets another condition."""

    def snapshots(**variables: str) -> dict[str, str]:
        return {name: str(condition.get_snapshot()) for name, condition in conditions(**variables).items()}

    usual = snapshots()
    for variables, assets in (
        ({"MODEL_RETRAIN": "eager"}, {"digit_classifier"}),
        ({"RETRAIN_CRON": "0 9 * * *"}, {"digit_classifier"}),
        ({"RAW_DATA_CRON": "0 9 * * *"}, {"raw_mnist_data"}),
        ({"PREDICT_CRON": "0 9 * * *"}, {"batch_digit_predictions"}),
        ({"BACKTEST_CRON": "0 9 * * *"}, {"backtest"}),
        (
            {"CRON_TIMEZONE": "Asia/Tokyo"},
            {"digit_classifier", "raw_mnist_data", "batch_digit_predictions", "backtest"},
        ),
        ({"MODEL_RETRAIN": "cron"}, set()),
    ):
        changed = snapshots(**variables)
        assert {name for name in usual if usual[name] != changed[name]} == assets, variables


def test_the_names_of_conditions_say_what_dagster_readers_know() -> None:
    labels = {name: condition.get_label() for name, condition in conditions().items()}
    assert labels["model_evaluation"] == "eager, if data or code changed"
    assert labels["digit_classifier"] == "on_cron, if data or code changed"
    assert labels["raw_mnist_data"] == "on_cron, or eager if data or code changed"


def checked_chain(works: list[bool]) -> list[dg.AssetsDefinition | dg.AssetChecksDefinition]:
    """An asset with a blocking check that says what `works` says, and one below it."""

    @dg.asset(code_version="1")
    def deployed() -> dg.Output[None]:
        return dg.Output(None, data_version=dg.DataVersion("1"))

    @dg.asset_check(asset=deployed, blocking=True)
    def deployed_works() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=works[-1])

    @dg.asset(deps=[deployed], code_version="1", automation_condition=eager_if_data_changed())
    def predictions() -> dg.Output[None]:
        return dg.Output(None, data_version=dg.DataVersion("1"))

    return [deployed, deployed_works, predictions]


def test_a_failed_blocking_check_holds_back_what_automation_would_launch() -> None:
    works = [False]
    definitions: Any = checked_chain(works)
    instance, cursor = dg.DagsterInstance.ephemeral(), None

    def build_and_evaluate() -> list[str]:
        nonlocal cursor
        dg.materialize(definitions, selection=["deployed"], instance=instance, raise_on_error=False)
        result = dg.evaluate_automation_conditions(
            dg.Definitions(
                assets=[part for part in definitions if not isinstance(part, dg.AssetChecksDefinition)],
                asset_checks=[definitions[1]],
            ),
            instance=instance,
            cursor=cursor,
        )
        cursor = result.cursor
        return sorted(r.key.to_user_string() for r in result.results if not r.true_subset.is_empty)

    assert build_and_evaluate() == []
    assert build_and_evaluate() == []
    works.append(True)
    assert build_and_evaluate() == ["predictions"]


class Watcher:
    """A sensor over a folder, tick by tick."""

    def __init__(self, environment: Environment, instance: dg.DagsterInstance, name: str) -> None:
        self.defs, self.instance, self.cursor = build_definitions(environment), instance, None
        self.sensor = self.defs.get_repository_def().get_sensor_def(name)

    def tick(self) -> list[str]:
        """The data versions that are observed."""
        with dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, definitions=self.defs, resources=self.defs.resources
        ) as context:
            result: Any = self.sensor.evaluate_tick(context)
        self.cursor = result.cursor
        for event in result.asset_events:  # as the daemon does
            self.instance.report_runless_asset_event(event)
        return [event.tags["dagster/data_version"] for event in result.asset_events]


@pytest.fixture
def folders(environment, tmp_path) -> Environment:
    (tmp_path / "in").mkdir()
    return environment.model_copy(
        update={"labelled_dir": str(tmp_path / "labelled"), "prediction_input": str(tmp_path / "in")}
    )


@pytest.mark.parametrize(
    ("sensor", "file"), [("watch_labelled_digits", "labelled/7/a.png"), ("watch_prediction_input", "in/a.png")]
)
def test_a_folder_is_read_and_observed_only_when_it_changed(
    folders, instance, tmp_path, monkeypatch, sensor, file
) -> None:
    watcher = Watcher(folders, instance, sensor)
    [empty] = watcher.tick()
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"one")
    [one] = watcher.tick()
    assert one != empty
    path.touch()  # a new time, the same contents
    assert watcher.tick() == []
    path.write_bytes(b"two")
    [two] = watcher.tick()
    assert two not in (one, empty)
    monkeypatch.setattr(
        "mnist_pipeline.files.folders.digest", lambda *_: pytest.fail("it was read though nothing changed")
    )
    assert watcher.tick() == []
    monkeypatch.undo()
    path.unlink()
    assert watcher.tick() == [empty]
    source = sensor.removeprefix("watch_")
    instance.wipe_assets([dg.AssetKey(source)])
    assert watcher.tick() == [empty]  # what depends on it would wait for ever
    path.with_name(".half-written").write_bytes(b"")
    assert watcher.tick() == []


def test_labelled_digits_in_a_bucket_are_watched_by_one_process_that_lives_on(
    environment, instance, s3_bucket, s3_url
) -> None:
    in_bucket = {"labelled_dir": f"s3://{s3_bucket}/labelled", "s3_endpoint_url": s3_url}
    watcher = Watcher(environment.model_copy(update=in_bucket), instance, "watch_labelled_digits")
    seen = watcher.tick()
    for key in ("labelled/7/a.png", "labelled/7/b.png"):
        boto3.client("s3", endpoint_url=s3_url).put_object(Bucket=s3_bucket, Key=key, Body=b"image")
        seen += watcher.tick()
        assert watcher.tick() == []
    assert len(set(seen)) == 3


def test_an_input_folder_that_is_not_there_fails_the_tick(folders, instance, tmp_path) -> None:
    missing = folders.model_copy(update={"prediction_input": str(tmp_path / "typo")})
    with pytest.raises(FileNotFoundError, match=r"PREDICTION_INPUT names no folder: .*typo"):
        Watcher(missing, instance, "watch_prediction_input").tick()


class Labelled:
    """`processed_mnist_data`, with so many labelled images, and a classifier with the condition under test."""

    def __init__(self, least: int) -> None:
        self.instance, self.labels = dg.DagsterInstance.ephemeral(), (0, 0, 0)
        self.cursor: Any = None
        self.now = datetime.datetime(2026, 1, 5, 12, tzinfo=datetime.UTC)  # a Monday, and the tick is on Sundays
        condition = on_cron_if_data_changed(tick("0 3 * * 0"), sooner=new_labels(least))

        @dg.asset
        def processed_mnist_data():
            names = ("labelled_digits_joined", "labelled_digits_held_out", "labelled_digits_relabelled")
            return dg.MaterializeResult(
                data_version=dg.DataVersion(str(self.labels)), metadata=dict(zip(names, self.labels, strict=True))
            )

        @dg.asset(deps=[processed_mnist_data], automation_condition=condition)
        def classifier():
            pass

        self.assets = [processed_mnist_data, classifier]

    def label(self, joined: int, held_out: int, relabelled: int = 0) -> None:
        self.labels = joined, held_out, relabelled
        dg.materialize(self.assets, selection=["processed_mnist_data"], instance=self.instance)

    def trains(self) -> bool:
        """Whether a training is asked for; then it is done."""
        self.now += datetime.timedelta(minutes=5)
        result = dg.evaluate_automation_conditions(
            self.assets, instance=self.instance, cursor=self.cursor, evaluation_time=self.now
        )
        self.cursor = result.cursor
        if result.total_requested:
            dg.materialize(self.assets, selection=["classifier"], instance=self.instance)
        return bool(result.total_requested)


def test_enough_new_labels_do_not_wait_for_the_tick():
    chain = Labelled(least=50)
    chain.label(0, 0)
    assert chain.trains()  # it was missing
    assert not chain.trains()
    chain.label(39, 10)
    assert not chain.trains()
    chain.label(40, 10)
    assert chain.trains()
    assert not chain.trains()
    for joined in (60, 80, 88):  # those of several times count together
        chain.label(joined, 10)
        assert not chain.trains()
    chain.label(88, 12)
    assert chain.trains()
    chain.label(88, 12, 49)
    assert not chain.trains()
    chain.label(88, 12, 50)  # corrections of raw images are labels, too
    assert chain.trains()
    chain.label(20, 0)  # taken back: that waits for the tick
    assert not chain.trains()


def test_labels_wait_for_the_tick_where_their_number_is_nought():
    chain = Labelled(least=0)
    chain.label(0, 0)
    assert chain.trains()
    chain.label(500, 100)
    assert not chain.trains()


def test_the_number_of_labels_is_that_of_the_environment():
    for variables, least in (({}, 50), ({"RETRAIN_AFTER_LABELS": "7"}, 7), ({"RETRAIN_AFTER_LABELS": "0"}, 0)):
        assets, _ = load_assets(Environment.read(variables))
        classifier = next(asset for asset in assets if asset.key == dg.AssetKey("digit_classifier"))
        [condition] = classifier.automation_conditions_by_key.values()
        waiting, found = [condition], []
        while waiting:
            part = waiting.pop()
            waiting += part.children
            found += [part.least] if isinstance(part, EnoughNewLabels) else []
        assert found == [least]
