"""Experiments beside a deployment: everything may change there, and nothing changes here."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from mnist_pipeline.defs.run_config import ConfigInvalid
from mnist_pipeline.environment import PLACES, Environment, EnvironmentInvalid
from mnist_pipeline.experiments import branch as branch_file
from mnist_pipeline.experiments.branch import Branch, branch_names, making
from mnist_pipeline.experiments.candidate import take_version
from mnist_pipeline.experiments.trials import Sweeps
from mnist_pipeline.history import begin_history, latest_events
from mnist_pipeline.ml.data import shared_images
from mnist_pipeline.ml.errors import ModelError
from mnist_pipeline.ml.records import Splits
from mnist_pipeline.ml.settings import TrainingSettings
from mnist_pipeline.stores import CorruptModel, LocalModelStore, ModelStoreError
from mnist_pipeline.stores.copying import copy_in_use
from mnist_pipeline.stores.datasets import keep_splits, load_splits
from mnist_pipeline.stores.earlier import TEST_SETS
from mnist_pipeline.stores.versions import DECISIONS, DIGEST_LENGTH, WEIGHTS
from mnist_pipeline.task.dataset import LabelledImages
from mnist_pipeline_tests import versions
from mnist_pipeline_tests.conftest import Pipeline, metadata
from mnist_pipeline_tests.experiments.conftest import a_sweep
from mnist_pipeline_tests.stores.test_trail import made
from mnist_pipeline_tests.task.examples import TINY, png, variables_of

SETTINGS = TrainingSettings(**TINY)
GATE = {"accuracy_threshold": 0.3, "max_slice_regression": 1.0, "serve_check": "off"}


@pytest.fixture
def variables(tmp_path, raw_folder) -> dict[str, str]:
    """The environment of the deployment, as the fixture `environment` has it."""
    return {"STORAGE_ROOT": str(tmp_path / "storage"), **variables_of(raw_folder)}


def make(pipeline: Pipeline, name: str = "x") -> Branch:
    branch = Branch(pipeline.environment, name)
    with making(branch) as (folder, _):
        begin_history(folder / branch.home.name, latest_events(pipeline.instance))
    return branch


@pytest.fixture
def working(variables) -> Iterator[Any]:
    """Opens an experiment as its commands do."""
    opened = []

    def working(branch: Branch) -> Pipeline:
        environment = Environment.read(variables | {"EXPERIMENT": branch.name, "DAGSTER_HOME": str(branch.home)})
        instance = dg.DagsterInstance.from_config(str(branch.home))
        opened.append(instance)
        return Pipeline(environment, instance)

    yield working
    for instance in opened:
        instance.dispose()


def contents(root: Path, but: Path) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_relative_to(but)]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_an_experiment_changes_the_split_and_its_candidate_goes_to_the_gate_of_the_deployment(
    pipeline, working, tmp_path, small_dataset
):
    labelled = tmp_path / "storage" / "labelled" / small_dataset.spec.class_names[3] / "one.png"
    labelled.parent.mkdir(parents=True)
    labelled.write_bytes(png(255 - small_dataset.train.images[0]))
    pipeline.run()
    branch = make(pipeline)
    before = contents(tmp_path / "storage", branch.folder)
    events = pipeline.instance.get_event_records(dg.EventRecordsFilter(dg.DagsterEventType.ASSET_MATERIALIZATION))

    inside = working(branch)
    [deployed] = inside.store.versions()
    assert inside.store.production().version == deployed == pipeline.store.production().version
    # Of a split of its own, with a label of its own, and deployed there.
    (branch.folder / "storage" / "labelled" / small_dataset.spec.class_names[3] / "two.png").write_bytes(
        png(255 - small_dataset.train.images[1])
    )
    result = inside.run(
        processed_mnist_data={"validation_fraction": 0.3},
        digit_classifier=TINY | {"seed": 1},
        production_digit_classifier=GATE | {"max_regression": 0.9},
    )
    assert metadata(result, "processed_mnist_data")["validation_images"] == 240
    trained = metadata(result, "digit_classifier")["model"]
    assert inside.store.production().version == trained
    assert branch.trained() == [trained]
    assert contents(tmp_path / "storage", branch.folder) == before
    assert events == pipeline.instance.get_event_records(
        dg.EventRecordsFilter(dg.DagsterEventType.ASSET_MATERIALIZATION)
    )

    # The look at the test images counts for the deployment, once, on top of what earlier code counted there.
    digest = inside.store.production().test_digest
    pipeline.store.put(f"{TEST_SETS}{digest[:DIGEST_LENGTH]}.json", b'{"decisions": 57}')
    assert [branch.count_decisions(), branch.count_decisions()] == [1, 0]
    state = pipeline.store.state()
    assert state.test_sets[digest] == 58 and state.deployed.version == deployed

    name, manifest = branch.candidate()
    candidate = {"version": name, "version_store": branch.store().address}
    chain = ("digit_classifier", "model_evaluation", "production_digit_classifier")
    sent = pipeline.run(*chain, digit_classifier=candidate, production_digit_classifier=GATE | {"max_regression": 0.9})
    assert metadata(sent, "digit_classifier")["model"] == manifest.name == trained
    decision = next(iter(pipeline.store.decisions(1)))
    assert (decision.version, decision.earlier_decisions) == (trained, 58)
    # Whole here, also when the experiment is gone; and once more it is the same.
    branch.discard()
    assert load_splits(pipeline.store, manifest.training.splits, manifest.task).validation.images.shape[0] == 240
    again = pipeline.run(*chain, digit_classifier={"version": trained}, production_digit_classifier=GATE)
    assert metadata(again, "digit_classifier")["model"] == trained
    assert len(pipeline.store.versions()) == 2


def test_an_experiment_begins_with_what_is_known(pipeline, working, tmp_path):
    pipeline.instance.report_runless_asset_event(
        dg.AssetObservation("labelled_digits", tags={"dagster/data_version": "observed"})
    )
    pipeline.run()
    inside = working(make(pipeline))
    for key in ("raw_mnist_data", "processed_mnist_data", "digit_classifier", "model_evaluation"):
        theirs, ours = (
            one.instance.get_latest_materialization_event(dg.AssetKey(key)).asset_materialization
            for one in (inside, pipeline)
        )
        assert theirs == ours
    graph = inside.defs.get_repository_def().asset_graph
    stale = CachingStaleStatusResolver(inside.instance, graph, LoadingContextForTest(inside.instance))
    assert stale.get_status(dg.AssetKey("processed_mnist_data")) == StaleStatus.FRESH
    splits = inside.defs.load_asset_value(dg.AssetKey("processed_mnist_data"), instance=inside.instance)
    assert len(splits.test.labels) == 200


def test_all_that_is_written_lies_in_the_experiment(tmp_path, variables):
    places = {name.upper(): f"/elsewhere/{name}" for name in PLACES if name != "storage_root"}
    given = variables | places | {"SLACK_BOT_TOKEN": "xoxb-1", "SLACK_CHANNEL": "#a", "S3_ENDPOINT_URL": "http://s3"}
    given |= {"ALERT_EMAIL_TO": "a@example.com", "SMTP_URL": "smtp://localhost"}
    folder = Environment.read(given).branch_folder("x")
    folder.mkdir(parents=True)
    inside = Environment.read(given | {"EXPERIMENT": "x"})
    for name in PLACES:
        if name == "prediction_input":  # it is only read
            assert inside.input_folder() == "/elsewhere/prediction_input"
        else:
            assert Path(inside.place(name, name)).is_relative_to(folder), name
    assert Path(inside.model_address()).is_relative_to(folder)
    assert Path(inside.dataset_settings().directory).is_relative_to(folder)
    folder_of_images = {"STORAGE_ROOT": given["STORAGE_ROOT"], "DATASET": "folder", "DATASET_DIR": "/my/images"}
    Environment.read(folder_of_images).branch_folder("x").mkdir(parents=True)
    images = Environment.read(folder_of_images | {"EXPERIMENT": "x"})
    assert images.dataset_settings().directory == "/my/images"  # only read, too
    assert (inside.automation, inside.slack_bot_token, inside.smtp_url) == (False, None, None)
    of_before = variables | {"MODEL_STORE": "s3", "S3_MODEL_BUCKET": "production"}
    assert Path(Environment.read(of_before | {"EXPERIMENT": "x"}).model_address()).is_relative_to(folder)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"EXPERIMENT": "y"}, "EXPERIMENT: there is no .*branches/y: make experiment NAME=y"),
        ({"EXPERIMENT": "../x"}, "EXPERIMENT: "),
        ({"EXPERIMENT": "x", "DAGSTER_HOME": "/home"}, "a DAGSTER_HOME of its own, .*x/home, but this one is /home"),
    ],
)
def test_what_is_no_experiment_is_refused(variables, more, message):
    Environment.read(variables).branch_folder("x").mkdir(parents=True)
    with pytest.raises(EnvironmentInvalid, match=message):
        Environment.read(variables | more)


def test_an_experiment_is_whole_or_not_there(pipeline, environment, monkeypatch):
    pipeline.run("raw_mnist_data")
    branch = Branch(environment, "x")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(branch_file, "copy_in_use", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        make(pipeline)
    assert list(branch.folder.parent.iterdir()) == []
    with pytest.raises(ModelStoreError, match="no experiment 'x'; there are: none"):
        branch.record()
    make(pipeline)
    assert branch_names(environment) == ["x"]
    with pytest.raises(ModelStoreError, match="an experiment x already"):
        make(pipeline)
    with pytest.raises(ModelStoreError, match="nothing was trained in x yet: make run EXPERIMENT=x"):
        branch.candidate()
    with pytest.raises(ModelStoreError, match=r"'\.\./x' is no name"):
        Branch(environment, "../x")
    with pytest.raises(ModelStoreError, match="do not nest"):
        Branch(branch.environment, "y")
    memory = environment.model_copy(update={"data_dir": "memory://values"})
    with pytest.raises(ModelStoreError, match="within one process only"), making(Branch(memory, "z")):
        pass


def test_an_experiment_is_discarded_unless_somebody_works_in_it(pipeline, environment):
    pipeline.run("raw_mnist_data")
    branch = make(pipeline)
    left_by_a_kill = branch.folder.with_name(f".x.{2**30}.12345678")
    left_by_a_kill.mkdir()
    work = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        env={"DAGSTER_HOME": str(branch.home)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with work:
        assert work.stdout
        work.stdout.readline()
        with pytest.raises(ModelStoreError, match=f"x is in use by the processes {work.pid}: end them"):
            branch.discard()
        work.kill()
    branch.discard()
    assert list(branch.folder.parent.iterdir()) == []
    left_by_a_kill.mkdir()
    branch.discard()
    assert list(branch.folder.parent.iterdir()) == []
    with pytest.raises(ModelStoreError, match="no experiment 'x'"):
        branch.discard()


def test_what_saw_the_test_images_is_no_candidate(tmp_path, trained, splits, spec):
    here, there = (LocalModelStore(base_path=str(tmp_path / name)) for name in ("here", "there"))
    leaked = LabelledImages(
        np.concatenate([splits.train.images, splits.test.images[:7]]),
        np.concatenate([splits.train.labels, splits.test.labels[:7]]),
    )
    for part in ("train", "validation"):
        kept = keep_splits(there, splits._replace(**{part: leaked}))
        manifest = versions.save(there, trained, SETTINGS, splits=kept)
        with pytest.raises(ModelStoreError, match=f"had 7 of the 200 test images in its {part} split"):
            take_version(here, there, manifest.name, splits)
    labelled = splits._replace(held_out=LabelledImages(splits.train.images[:3], splits.train.labels[:3]))
    manifest = versions.save(
        there,
        trained,
        SETTINGS,
        splits=keep_splits(
            there, splits._replace(train=LabelledImages(splits.train.images[:9], splits.train.labels[:9]))
        ),
    )
    with pytest.raises(ModelStoreError, match="had 3 of the 3 held-out images in its train split"):
        take_version(here, there, manifest.name, labelled)
    unknown = versions.save(there, trained, SETTINGS)
    with pytest.raises(ModelStoreError, match=r"cannot be told if .* was trained on images"):
        take_version(here, there, unknown.name, splits)
    other = splits._replace(spec=spec.model_copy(update={"name": "letters"}))
    with pytest.raises(ModelError, match="letters"):
        take_version(here, there, manifest.name, other)
    assert here.versions() == []


def test_a_version_with_other_images_may_be_a_candidate(tmp_path, trained, splits, caplog):
    here, there = (LocalModelStore(base_path=str(tmp_path / name)) for name in ("here", "there"))
    fewer = splits._replace(
        train=LabelledImages(splits.train.images[:99], splits.train.labels[:99]),
        test=LabelledImages(splits.test.images[:50], splits.test.labels[:50]),
    )
    assert shared_images(fewer.train, splits.test) == 0
    manifest = versions.save(there, trained, SETTINGS, splits=keep_splits(there, fewer))
    assert take_version(here, there, manifest.name, splits) == manifest
    assert "trained on 5 of the 160 validation images" not in caplog.text
    swapped = splits._replace(
        validation=LabelledImages(
            np.concatenate([splits.train.images[:5], splits.validation.images[5:]]), splits.validation.labels
        )
    )
    take_version(here, there, manifest.name, swapped)
    assert "trained on 5 of the 160 validation images" in caplog.text
    found: Splits = load_splits(here, manifest.training.splits, splits.spec)
    assert len(found.train.labels) == 99
    assert take_version(here, there, manifest.name, splits) == manifest
    assert here.versions() == [manifest.name]


def test_only_what_is_in_use_is_copied(tmp_path, store, save):
    """From a store of each kind."""
    target = LocalModelStore(base_path=str(tmp_path / "target"))
    assert copy_in_use(store, target) == (store.state(), [])
    assert list(target.list_objects()) == []
    first, second, third, fourth = (save() for _ in range(4))
    for manifest in (first, second, third):
        store.promote(made(store, manifest))
    state, copied = copy_in_use(store, target)
    assert copied == target.versions() == [fourth.name, third.name, second.name, first.name][: len(copied)]
    assert set(copied) == {name for name in store.state().in_use if name} | {fourth.name}
    assert target.state().deployed == store.state().deployed == state.deployed
    assert len(list(target.list_objects(DECISIONS))) == 2  # those about the two promoted versions that are in use
    assert [found.version for found in target.decisions_about(third.name)] == [third.name]
    target.promote(made(target, fourth))
    assert store.state().deployed.version == third.name
    store.put(f"{third.name}/{WEIGHTS}", b"damaged")
    with pytest.raises(CorruptModel, match=third.name):
        copy_in_use(store, LocalModelStore(base_path=str(tmp_path / "another")))


def test_a_trial_of_an_experiment_may_be_promoted(tmp_path, trained, splits):
    here, there = (LocalModelStore(base_path=str(tmp_path / name)) for name in ("here", "there"))
    sweeps = Sweeps(there)
    sweeps.begin(a_sweep())
    trial = sweeps.propose("some").trials[0]
    manifest = versions.save(sweeps.models("some"), trained, SETTINGS, splits=keep_splits(there, splits))
    name = sweeps.read("some").name_of(trial)
    result = {"version": manifest.name, "validation_accuracy": 0.9, "validation_loss": 0.1, "epochs": 1, "seconds": 1.0}
    sweeps.record(name, trial.model_copy(update=result))
    assert take_version(here, there, name, splits).name == here.versions()[0] == manifest.name
    assert load_splits(here, manifest.training.splits, splits.spec).parts.keys() == splits.parts.keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trial": "some/000-s0", "version": "mnist"}, "trial and version both name the candidate"),
        ({"version_store": "/elsewhere"}, "version_store would be ignored without version"),
        ({"version": "mnist", "version_store": "ftp://host"}, "version_store: .*'ftp://host' is neither a folder"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(pipeline, settings, message):
    with pytest.raises(ConfigInvalid, match=message):
        pipeline.run("digit_classifier", digit_classifier=settings)
