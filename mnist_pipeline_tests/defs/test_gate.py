"""The gate through the graph: its evidence, approval, the reference, and deployments from outside."""

from typing import Any

import dagster as dg
import pytest

from mnist_pipeline.defs.alerts import events
from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.stores import ModelStoreError, PromotionConflict
from mnist_pipeline.task.corruptions import corruptions
from mnist_pipeline_tests.conftest import Pipeline, check_results, metadata
from mnist_pipeline_tests.task.examples import SPEC, TINY

GATE = "production_digit_classifier"
LOW = {"accuracy_threshold": 0.3, "max_slice_regression": 1.0, "serve_check": "off"}
"""The models here are trained for a moment, and by chance blind to one corruption or another."""
FORCE = {"strategy": "force", "reason": "a test", "serve_check": "off"}
APPROVAL = {"strategy": "approval", **LOW}


CANDIDATE = ("digit_classifier", "model_evaluation", GATE)


def candidate(pipeline: Pipeline, seed: int, gate: dict[str, Any] | None = None) -> dg.ExecuteInProcessResult:
    """A training and the gate's decision about it; the first one begins with the data."""
    has_data = pipeline.instance.get_latest_materialization_event(dg.AssetKey("processed_mnist_data"))
    assets = CANDIDATE if has_data else ("raw_mnist_data", "processed_mnist_data", *CANDIDATE)
    return pipeline.run(*assets, digit_classifier={**TINY, "seed": seed}, production_digit_classifier=gate or LOW)


@pytest.fixture
def predicted(monkeypatch) -> list[str]:
    """The versions that the gate had predict the test images, in order."""
    seen: list[str] = []

    class Watched(Predictor):
        def predict(self, *arguments):
            seen.append(self.version)
            return super().predict(*arguments)

    monkeypatch.setattr("mnist_pipeline.stores.scores.Predictor", Watched)
    return seen


def test_the_record_and_the_page_carry_the_evidence(pipeline, small_dataset):
    first = candidate(pipeline, 0)
    assert "comparisons" not in metadata(first, GATE)
    result = candidate(pipeline, 1)
    decision, page = pipeline.store.decisions()[0], metadata(result, GATE)
    labels = small_dataset.test.labels
    new, old = (
        Predictor(*pipeline.store.load_onnx(name)).predict(small_dataset.test.images).argmax(1) == labels
        for name in (decision.version, decision.incumbent_version)
    )
    [comparison] = decision.comparisons
    assert (comparison.fixed, comparison.broken) == ((new & ~old).sum(), (old & ~new).sum())
    assert comparison.fixed + comparison.broken > 0
    assert comparison.test_accuracy == decision.incumbent_test_accuracy == old.mean()
    assert (decision.max_regression, decision.too_few_images, decision.earlier_decisions) == (0.003, True, 0)
    assert f"fixes {comparison.fixed} and breaks {comparison.broken} of 200 images of the incumbent" in decision.reason
    assert decision.reason.endswith("earlier decisions by these test images: 0")
    shown = {row.data["measure"]: row.data["incumbent"] for row in page["comparisons"].records}
    assert shown["version"] == decision.incumbent_version
    assert shown["images that the candidate fixes"] == str(comparison.fixed)
    assert "data:image/webp;base64," in page["fixed_and_broken"]
    assert page["regression"] == comparison.regression
    [check] = [check for check in result.get_asset_check_evaluations() if check.check_name == "candidate_accepted"]
    assert {"comparisons", "fixed_and_broken", "regression", "earlier_decisions"} <= set(check.metadata)
    candidate(pipeline, 2)
    assert pipeline.store.decisions()[0].earlier_decisions == 1
    assert pipeline.store.decisions()[0].reason.endswith("earlier decisions by these test images: 1")


def test_a_version_predicts_the_test_images_once(pipeline, predicted):
    candidate(pipeline, 0)
    candidate(pipeline, 1)
    assert predicted == []  # model_evaluation kept the results of both
    store, deployed = pipeline.store, pipeline.store.production().version
    candidate(pipeline, 2, {"accuracy_threshold": 1.0})
    [kept] = [key for key in store.list_objects(f"{deployed}/") if key.endswith(".labels")]
    whole, _ = store.read_object(kept)
    for damage in (b"", whole[:-4], whole[:-1] + b"\1", b"\x93NUMPY\x01\x00", None):
        store.delete_object(kept)
        if damage is not None:
            store.create_object(kept, damage)
        decisions = len(store.decisions())
        pipeline.run(GATE, production_digit_classifier={"accuracy_threshold": 1.0})
        assert predicted == [deployed] * (1 + len(corruptions(SPEC)))  # each part of the suite once
        predicted.clear()
        assert len(store.decisions()) == decisions + 1
    assert store.read_object(kept)[0] == whole


def test_a_changing_setting_changes_the_decision(pipeline):
    candidate(pipeline, 0)
    worse = {**TINY, "epochs": 1, "seed": 1}
    outcomes = []
    for change in ({"max_regression": 1.0}, {"max_regression": 0.0}, {"max_regression": 0.0, "when_too_few": "keep"}):
        first = pipeline.store.production().version
        pipeline.run(*CANDIDATE, digit_classifier=worse, production_digit_classifier=LOW | change)
        outcomes.append(pipeline.store.decisions()[0].outcome)
        if pipeline.store.production().version != first:
            pipeline.store.rollback("to try again", "me", to=first)
            worse["seed"] += 1  # what was rolled back stays out
    assert outcomes == ["promoted", "refused", "refused"]


def test_what_the_gate_would_promote_waits_for_approval(pipeline):
    first = candidate(pipeline, 0).output_for_node("digit_classifier").name
    deployed = pipeline.store.production()
    result = candidate(pipeline, 1, APPROVAL)
    waiting = pipeline.store.waiting()
    assert waiting == pipeline.store.decisions()[0]
    assert (waiting.outcome, waiting.strategy, waiting.incumbent_version) == ("waiting", "approval", first)
    assert pipeline.store.production() == deployed
    assert check_results(result)["candidate_accepted"] is False
    assert metadata(result, GATE)["outcome"] == "waiting"
    predicted = pipeline.run("batch_digit_predictions")
    assert metadata(predicted, "batch_digit_predictions")["model"] == first

    pipeline.run(GATE, production_digit_classifier=APPROVAL)  # the same candidate again waits already
    assert pipeline.store.decisions()[0] == waiting

    pipeline.run(GATE, production_digit_classifier=APPROVAL | {"accuracy_threshold": 1.0})  # unless it is refused now
    assert pipeline.store.decisions()[0].outcome == "refused"
    assert pipeline.store.waiting() is None
    candidate(pipeline, 1, APPROVAL)
    waiting = pipeline.store.waiting()
    pipeline.run(
        digit_classifier={**TINY, "seed": 2}, production_digit_classifier=APPROVAL | {"accuracy_threshold": 1.0}
    )
    assert pipeline.store.waiting() == waiting  # another one that is refused changes nothing

    candidate(pipeline, 2, APPROVAL)  # a later one takes its place
    later = pipeline.store.waiting()
    with pytest.raises(ModelStoreError, match=f"does not wait for approval; {later.version} does"):
        pipeline.store.approve(waiting.version, "fine", "kim")
    with pytest.raises(ModelStoreError, match="needs a reason"):
        pipeline.store.approve(later.version, " ", "kim")
    approved = pipeline.store.approve(later.version, "fine", "kim")
    assert pipeline.store.production() == approved == pipeline.store.decisions()[0]
    assert (approved.outcome, approved.strategy, approved.reason, approved.actor) == (
        "promoted",
        "approval",
        "fine",
        "kim",
    )
    assert approved.comparisons == later.comparisons
    assert pipeline.store.waiting() is None


def test_a_candidate_waits_only_while_deployed_is_what_it_was_compared_with(pipeline):
    candidate(pipeline, 0)
    candidate(pipeline, 1, APPROVAL)
    name = pipeline.store.waiting().version
    candidate(pipeline, 2, FORCE)
    assert pipeline.store.waiting() is None
    with pytest.raises(ModelStoreError, match=r"no version does.* Something may have been deployed since"):
        pipeline.store.approve(name, "fine", "kim")


def test_of_two_who_deploy_at_once_one_is_told(pipeline, monkeypatch):
    candidate(pipeline, 0)
    candidate(pipeline, 1, APPROVAL)
    store, state = pipeline.store, type(pipeline.store).state
    seen = [store.state()]
    candidate(pipeline, 2, FORCE)
    monkeypatch.setattr(type(store), "state", lambda self: seen.pop() if seen else state(self))  # a moment earlier
    with pytest.raises(PromotionConflict):
        store.approve(seen[0].waiting.version, "fine", "kim")


def test_where_nothing_is_deployed_a_candidate_can_wait_too(pipeline):
    result = candidate(pipeline, 0, APPROVAL)
    assert result.success
    assert pipeline.store.production() is None
    approved = pipeline.store.approve(pipeline.store.waiting().version, "the first", "kim")
    recorded = DeploymentWatcher(pipeline).tick()
    assert isinstance(recorded, dg.ExecuteInProcessResult)
    assert metadata(recorded, GATE)["deployed"] == approved.version
    assert pipeline.store.production() == approved
    assert approved.reference == approved.version


def test_the_reference_stays_until_it_is_beaten_or_somebody_chooses(pipeline):
    candidate(pipeline, 0, {"accuracy_threshold": 0.0})
    first = pipeline.store.production()
    assert first.reference == first.version
    promoted = pipeline.run(
        *CANDIDATE,
        digit_classifier={**TINY, "seed": 1, "epochs": 1},
        production_digit_classifier=LOW | {"max_regression": 1.0, "accuracy_threshold": 0.0},
    )
    second = pipeline.store.production()
    assert second.version == promoted.output_for_node("digit_classifier").name
    assert second.reference == first.version
    third = candidate(pipeline, 2, LOW | {"max_regression": 1.0, "accuracy_threshold": 0.0})
    decision = pipeline.store.decisions()[0]
    assert [comparison.version for comparison in decision.comparisons] == [second.version, first.version]
    assert [comparison.role for comparison in decision.comparisons] == ["incumbent", "reference"]
    [versions, *_] = metadata(third, GATE)["comparisons"].records
    assert (versions.data["incumbent"], versions.data["reference"]) == (second.version, first.version)
    assert metadata(third, GATE)["reference"] == first.version
    pipeline.store.prune(keep=1)
    assert first.version in pipeline.store.versions()
    back = pipeline.store.rollback("chosen", "me", to=second.version)
    assert back.reference == second.version


@pytest.mark.parametrize(
    ("gate", "works"),
    [({"max_regression": 1.0, "max_slice_regression": 1.0}, False), (FORCE, True)],
    ids=["quality", "force"],
)
def test_a_damaged_reference_can_be_replaced_but_not_compared_with(pipeline, gate, works):
    candidate(pipeline, 0)
    reference = pipeline.store.production().version
    pipeline.run(
        *CANDIDATE,
        digit_classifier={**TINY, "seed": 1, "epochs": 1},
        production_digit_classifier=LOW | {"max_regression": 1.0, "accuracy_threshold": 0.0},
    )
    assert pipeline.store.production().reference == reference
    pipeline.store.delete_version(reference)
    result = pipeline.run(
        *CANDIDATE,
        digit_classifier={**TINY, "seed": 2},
        production_digit_classifier=gate,
        raise_on_error=False,
    )
    assert result.success is works
    if not works:
        assert "the reference cannot be compared with" in str(result.failure_data_for_node(GATE))


class DeploymentWatcher:
    """The sensor over production, tick by tick; what it asks for is run."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.sensor = pipeline.defs.get_repository_def().get_sensor_def("watch_deployment")
        self.done: set[str] = set()
        self.cursor: str | None = None

    def tick(self) -> dg.ExecuteInProcessResult | str:
        """The run that it asked for, or why it asked for none."""
        with dg.build_sensor_context(
            instance=self.pipeline.instance,
            definitions=self.pipeline.defs,
            resources=self.pipeline.defs.resources,
            cursor=self.cursor,
        ) as context:
            result: Any = self.sensor.evaluate_tick(context)
        self.cursor = result.cursor
        if not result.run_requests:
            return str(result.skip_message)
        [request] = result.run_requests
        assert request.run_key not in self.done
        self.done.add(request.run_key)
        job = self.pipeline.defs.resolve_job_def("full_pipeline_job")
        return job.execute_in_process(
            run_config=request.run_config,
            asset_selection=[dg.AssetKey(GATE)],
            instance=self.pipeline.instance,
        )


def test_a_deployment_by_command_reaches_dagster(pipeline):
    watcher = DeploymentWatcher(pipeline)
    assert "nothing" in str(watcher.tick())
    first = candidate(pipeline, 0).output_for_node("digit_classifier").name
    assert watcher.tick() == "nothing is deployed, or it is recorded"
    candidate(pipeline, 1, FORCE)
    assert watcher.tick() == "nothing is deployed, or it is recorded"

    back = pipeline.store.rollback("customers complain", "kim")
    decisions = pipeline.store.decisions()
    result = watcher.tick()
    assert isinstance(result, dg.ExecuteInProcessResult)
    page = metadata(result, GATE)
    assert (page["deployed"], page["deployed_because"], page["outcome"]) == (first, "customers complain", "promoted")
    assert result.output_for_node(GATE) == back
    assert check_results(result) == {"candidate_accepted": True, "deployed_model_works": True}
    assert pipeline.store.decisions() == decisions  # nothing was decided
    [told] = pipeline.instance.fetch_observations(dg.AssetKey(GATE), limit=1).records
    assert told.asset_observation.metadata["id"].value == back.id
    assert watcher.tick() == "nothing is deployed, or it is recorded"

    candidate(pipeline, 2, APPROVAL)
    approved = pipeline.store.approve(pipeline.store.waiting().version, "fine", "kim")
    result = watcher.tick()
    assert isinstance(result, dg.ExecuteInProcessResult)
    assert metadata(result, GATE)["deployed"] == approved.version


def test_a_run_that_has_yet_to_record_its_own_deployment_is_left_alone(pipeline):
    candidate(pipeline, 0)
    run = pipeline.instance.create_run_for_job(
        pipeline.defs.resolve_job_def("deployment_job"), status=dg.DagsterRunStatus.STARTED
    )
    deployed = pipeline.store.production()
    pipeline.store.promote(
        deployed.model_copy(update={"id": "later", "replaces": deployed.id, "actor": f"run {run.run_id}"})
    )
    watcher = DeploymentWatcher(pipeline)
    assert "records it itself" in str(watcher.tick())
    pipeline.instance.add_run_tags(run.run_id, {"dagster/will_retry": "true"})
    pipeline.instance.report_run_failed(run)  # killed between its decision and its materialization
    assert "records it itself" in str(watcher.tick())
    again = pipeline.instance.create_run_for_job(
        pipeline.defs.resolve_job_def("deployment_job"),
        status=dg.DagsterRunStatus.STARTED,
        tags={"dagster/root_run_id": run.run_id, "dagster/parent_run_id": run.run_id},
        parent_run_id=run.run_id,
        root_run_id=run.run_id,
    )
    assert "records it itself" in str(watcher.tick())
    pipeline.instance.report_run_failed(again)
    assert isinstance(watcher.tick(), dg.ExecuteInProcessResult)


def test_a_deployment_by_command_is_recorded_whatever_the_defaults_are(environment, instance, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(f"ops: {{{GATE}: {{config: {{accuracy_threshold: 0.2, max_regression: 0.5}}}}}}")
    pipeline = Pipeline(environment.model_copy(update={"pipeline_config": str(file)}), instance)
    candidate(pipeline, 0)
    candidate(pipeline, 1, LOW | {"max_regression": 1.0})
    pipeline.store.rollback("customers complain", "kim")
    assert isinstance(DeploymentWatcher(pipeline).tick(), dg.ExecuteInProcessResult)


def test_a_candidate_that_has_yet_to_be_decided_about_is_not_passed_over(pipeline):
    candidate(pipeline, 0)
    candidate(pipeline, 1, FORCE)
    pipeline.run("digit_classifier", "model_evaluation", digit_classifier={**TINY, "seed": 2})
    pipeline.store.rollback("customers complain", "kim")
    watcher = DeploymentWatcher(pipeline)
    decisions = pipeline.store.decisions()
    assert watcher.tick() == "a candidate has yet to be decided about"  # automation may do it
    result = watcher.tick()
    assert isinstance(result, dg.ExecuteInProcessResult)
    decided = pipeline.store.decisions()
    assert len(decided) == len(decisions) + 1
    assert decided[0].strategy == "quality"


def test_a_deployment_that_earlier_code_recorded_is_known_by_its_version(pipeline):
    candidate(pipeline, 0)
    first = pipeline.store.production()
    key = dg.AssetKey(GATE)
    old = dg.AssetMaterialization(key, metadata={"deployed": first.version}, tags={"dagster/data_version": "1"})
    candidate(pipeline, 1, FORCE)
    watcher = DeploymentWatcher(pipeline)
    pipeline.instance.report_runless_asset_event(old)
    assert "yet to be decided" in str(watcher.tick())  # it says nothing of what it was built from
    assert isinstance(watcher.tick(), dg.ExecuteInProcessResult)
    pipeline.instance.report_runless_asset_event(
        dg.AssetMaterialization(key, metadata={"deployed": pipeline.store.production().version})
    )
    assert "it is recorded" in str(watcher.tick())


def test_a_candidate_that_waits_is_told(environment, instance):
    pipeline = Pipeline(environment, instance)
    candidate(pipeline, 0, APPROVAL)
    [record] = instance.fetch_observations(dg.AssetKey(GATE), limit=1).records
    alert = events.decision(record)
    assert alert
    name = pipeline.store.waiting().version
    assert (alert.kind, alert.title, alert.name) == ("approvals", "waits for approval", name)
    assert f"python -m mnist_pipeline approve {name} --reason ..." in str(alert)
