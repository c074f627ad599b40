"""Stores outlive the code: what earlier formats wrote is listed, scored, rolled back to and served."""

import hashlib
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
import torch

from mnist_pipeline.__main__ import main
from mnist_pipeline.environment import Environment
from mnist_pipeline.ml.manifest import ModelManifest
from mnist_pipeline.ml.model import model_from_bytes, predict_logits
from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.stores import CorruptModel, LocalModelStore, store_from_environment
from mnist_pipeline.stores.exports import ONNX, ONNX_RECORD
from mnist_pipeline.stores.state import PRODUCTION
from mnist_pipeline.stores.versions import MANIFEST
from mnist_pipeline_tests.conftest import Pipeline
from mnist_pipeline_tests.live import wait_until
from mnist_pipeline_tests.serve.service import Service
from mnist_pipeline_tests.task.drawing import drawn, encode
from mnist_pipeline_tests.task.examples import TINY, png

STORES = Path(__file__).parent
FORMATS = ["format_1", "format_2", "format_3"]
"""Small stores, written by the code of the time: format_1 by commit 162d92f, format_2 by the one after it, and format_3
once there was a model.onnx. Each has a version that the gate deployed, one that it refused, one deployed by force,
and a rollback to the first."""

EARLIER = pytest.mark.parametrize("models", FORMATS[:2], indirect=True)


@pytest.fixture(params=FORMATS)
def models(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of an old store where a deployment of today has its store."""
    return Path(shutil.copytree(STORES / request.param, tmp_path / "storage" / "models"))


@pytest.fixture
def store(models: Path) -> LocalModelStore:
    return LocalModelStore(base_path=str(models))


def test_versions_are_listed_and_described(store, spec):
    assert [name.split("_acc")[0][-2:] for name in store.versions()] == ["s1", "s0", "s0"]
    manifests = [store.manifest(name) for name in store.versions()]
    assert {manifest.task for manifest in manifests} == {spec}
    assert [manifest.training.settings["optimizer"] for manifest in manifests] == ["sgd", "adamw", "adamw"]
    assert [manifest.training.best("validation_accuracy") for manifest in manifests] == [0.75, 0.0375, 0.73125]
    assert all(manifest.training.drift_reference and manifest.training.began_at for manifest in manifests)


def test_the_audit_trail_is_read(store):
    outcomes = [(decision.strategy, decision.outcome) for decision in store.decisions()]
    assert outcomes == [
        ("rollback", "promoted"),
        ("force", "promoted"),
        ("quality", "refused"),
        ("quality", "promoted"),
    ]
    assert store.production() == store.decisions()[0]
    assert store.rolled_back(store.decisions()[1].digests) == store.production().reason


def test_every_version_predicts_as_it_did(store, small_dataset):
    images, labels = small_dataset.test
    scores = {d.version: d.test_accuracy for d in store.decisions() if d.test_accuracy is not None}
    assert len(scores) == 3
    for version, accuracy in scores.items():
        assert (Predictor(*store.load_onnx(version)).predict(images).argmax(1) == labels).mean() == accuracy


@EARLIER
def test_the_file_that_is_served_is_made_once_beside_an_unchanged_manifest(store, small_dataset):
    name = store.production().version
    before = store.read_object(f"{name}/{MANIFEST}")[0]
    manifest, onnx = store.load_onnx(name)
    assert store.read_object(f"{name}/{MANIFEST}")[0] == before
    record = json.loads(store.read_object(f"{name}/{ONNX_RECORD}")[0])
    assert record == {
        "onnx_sha256": hashlib.sha256(onnx).hexdigest(),
        "exporter": "torch.onnx.export(dynamo=False)",
        "torch_version": torch.__version__,
    }
    network = model_from_bytes(store.load(name)[1], manifest.network, manifest.task)
    logits = predict_logits(network, small_dataset.test.images, manifest.task)
    found = Predictor(manifest, onnx).predict(small_dataset.test.images)
    np.testing.assert_allclose(found, logits.softmax(1).numpy(), atol=1e-5)
    _, token = store.read_object(f"{name}/{ONNX}")
    assert store.load_onnx(name) == (manifest, onnx)
    assert store.read_object(f"{name}/{ONNX}")[1] == token


@EARLIER
def test_many_make_it_at_once_and_one_file_stays(store):
    name = store.production().version
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: store.load_onnx(name), range(8)))
    assert len({(manifest.onnx_sha256, onnx) for manifest, onnx in made}) == 1


@EARLIER
def test_another_file_in_its_place_is_not_taken_for_it(store, save_to):
    """As if a kill came between the file and its record, or somebody put it there."""
    name, other = store.production().version, save_to(store).name
    good = store.load_onnx(name)
    for left, works in ((good[1], True), (store.load_onnx(other)[1], False)):
        store.delete_object(f"{name}/{ONNX_RECORD}")
        store.put(f"{name}/{ONNX}", left)
        if works:
            assert store.load_onnx(name) == good
        else:
            with pytest.raises(CorruptModel, match=r"has another model\.onnx already"):
                store.load_onnx(name)


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from mnist_pipeline.stores import LocalModelStore, NotExported
store = LocalModelStore(base_path=sys.argv[1])
try:
    store.load_onnx(store.production().version)
except NotExported as error:
    print(error)
else:
    print("loaded")
"""


@EARLIER
def test_without_torch_it_is_refused_with_what_to_do_and_then_served(store, models, monkeypatch, capsys):
    def elsewhere() -> str:
        command = [sys.executable, "-c", WITHOUT_TORCH, str(models)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    name = store.production().version
    told = elsewhere()
    command = f"python -m mnist_pipeline export {name}"
    assert command in told and "torch, which is not installed" in told
    monkeypatch.setenv("MODEL_STORE", str(models))
    assert main(command.split()[3:]) == 0
    assert "has its model.onnx" in capsys.readouterr().out
    assert elsewhere() == "loaded\n"


@EARLIER
def test_a_damaged_record_of_it_is_told(store):
    name = store.production().version
    store.load_onnx(name)
    store.put(f"{name}/{ONNX_RECORD}", b"{}")
    with pytest.raises(CorruptModel, match=r"onnx\.json of .* is damaged; delete it"):
        store.load_onnx(name)


def test_a_new_candidate_is_compared_with_it_and_it_is_rolled_back_to(environment, instance, models):
    pipeline = Pipeline(environment, instance)
    first = pipeline.store.production()
    pipeline.run(digit_classifier={**TINY, "epochs": 4})
    decision = pipeline.store.decisions()[0]
    assert (decision.outcome, decision.incumbent_version) == ("promoted", first.version)
    assert decision.incumbent_test_accuracy == 0.755
    assert pipeline.store.rollback("customers complain", "kim").version == first.version
    batch = pipeline.run("batch_digit_predictions").output_for_node("batch_digit_predictions")
    assert batch.model == first.version
    assert batch.drift


def test_it_is_served_and_corrected(store, small_dataset, tmp_path):
    with Service(store, tmp_path / "labelled") as service:
        answer = service.predict(png(small_dataset.test.images[0])).json()
        assert answer["model"] == store.production().version
        model = service.client.get("/model").json()
        assert model["class_names"] == list(small_dataset.spec.class_names)
        assert model["validation_accuracy"] == 0.73125
        correction = {"image": small_dataset.test.images[0].tolist(), "label": 3}
        assert service.client.post("/corrections", json=correction).json()["waiting"] == 1


def test_pruning_keeps_what_is_deployed(store):
    deployed, replaced = store.production().version, store.production().incumbent_version
    assert len(store.prune(keep=1).versions) == 1
    assert set(store.versions()) == {deployed, replaced}


def rewrite(models: Path, key: str, change: Any) -> None:
    path = models / key
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def deployed(store) -> str:
    return store.production().version


def test_unknown_and_missing_names_of_the_training_are_kept_and_no_error(store, models, deployed):
    """As if a setting had been renamed, and another version of the code had recorded more."""

    def change(manifest: dict[str, Any]) -> None:
        training = manifest.get("training", manifest)
        training["settings"]["averaging_epochs"] = training["settings"].pop("ema_epochs")
        training["cost"] = {"kWh": 0.1}
        del training["run_id"]
        training["history"][0].pop("seconds")

    rewrite(models, f"{deployed}/{MANIFEST}", change)
    training = store.manifest(deployed).training
    assert training.settings["averaging_epochs"] == 0.5
    assert training.run_id is None
    assert json.loads(store.manifest(deployed).model_dump_json())["training"]["cost"] == {"kWh": 0.1}
    Predictor.from_store(store).verify()


def test_an_unreadable_part_of_the_training_counts_as_missing(store, models, deployed):
    def change(manifest: dict[str, Any]) -> None:
        training = manifest.get("training", manifest)
        training |= {"created_at": "yesterday", "best_epoch": "last", "history": "none", "drift_reference": {"bins": 3}}

    rewrite(models, f"{deployed}/{MANIFEST}", change)
    training = store.manifest(deployed).training
    assert (training.created_at, training.best("validation_loss"), training.drift_reference) == (None, None, None)
    kept = {"created_at": "yesterday", "best_epoch": "last", "history": "none", "drift_reference": {"bins": 3}}
    assert training.model_extra == {f"unreadable_{name}": value for name, value in kept.items()}
    Predictor.from_store(store).verify()


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [("network", "conv_chanels", [4]), ("network", "hidden_dropout", 2), ("task", "mean", [0.1, 0.2]), (None, "x", 1)],
)
def test_what_is_needed_to_predict_is_strict(tmp_path, part, name, value):
    models = Path(shutil.copytree(STORES / "format_2", tmp_path / "models"))
    store = LocalModelStore(base_path=str(models))
    version = store.versions()[0]
    rewrite(
        models, f"{version}/{MANIFEST}", lambda manifest: (manifest[part] if part else manifest).update({name: value})
    )
    with pytest.raises(CorruptModel, match=name):
        store.manifest(version)


def test_a_format_of_the_future_is_refused_by_its_number(store, models, deployed):
    rewrite(models, f"{deployed}/{MANIFEST}", lambda manifest: manifest.update(format_version=4))
    with pytest.raises(CorruptModel, match="format_version"):
        store.manifest(deployed)


@EARLIER
def test_decisions_of_other_code_are_shown_and_deploy_nothing(store, models, deployed):
    """As if a later version of the code had canaries."""
    decision = store.decisions()[0]
    later = decision.model_dump(mode="json") | {"id": "9", "outcome": "canary", "share": 0.1}
    (models / "decisions" / "9.json").write_text(json.dumps(later))
    shown = store.decisions()[0]
    assert (shown.outcome, shown.model_extra) == ("canary", {"share": 0.1})
    assert store.production().version == deployed
    assert store.rolled_back(decision.digests) is None
    with pytest.raises(ValueError, match="only a decision to promote deploys, not 'canary'"):
        store.promote(shown)


def test_production_of_other_code_deploys_nothing_and_can_be_left(store, models, deployed):
    with Service(store) as service:
        rewrite(models, PRODUCTION, lambda decision: decision.update(share=0.1))
        assert store.production().model_extra == {"share": 0.1}
        rewrite(models, PRODUCTION, lambda decision: decision.update(outcome="canary", id="9"))
        with pytest.raises(CorruptModel, match="'canary', which deploys nothing as far as this code knows"):
            store.production()
        wait_until(lambda: service.client.get("/readyz").json()["problems"], "the refusal")
        assert service.client.get("/model").json()["model"] == deployed
        assert store.decisions()[0].outcome == "canary"
        assert deployed not in store.prune(keep=1).versions
        other = store.versions()[0]
        assert store.rollback("out of it", "me", to=other).version == other
        assert store.production().version == other
        wait_until(lambda: service.client.get("/model").json()["model"] == other, "it to be served")


@pytest.mark.parametrize("change", [{"normalization": None}, {"settings": []}, {"settings": {"conv_depths": "deep"}}])
def test_a_damaged_manifest_of_the_first_format_is_refused(tmp_path, change):
    models = Path(shutil.copytree(STORES / "format_1", tmp_path / "models"))
    store = LocalModelStore(base_path=str(models))
    version = store.versions()[0]
    rewrite(models, f"{version}/{MANIFEST}", lambda manifest: manifest.update(change))
    with pytest.raises(CorruptModel, match="damaged"):
        store.manifest(version)


@EARLIER
def test_what_other_code_deployed_is_replaced_though_it_wrote_its_decision_otherwise(store, models, deployed):
    """The order of names, what is left out, how a time is written: nothing that this code would write so."""
    first = store.decisions()[0]
    for key in (PRODUCTION, f"decisions/{first.id}.json"):
        rewrite(models, key, lambda decision: decision.update(decided_at=first.decided_at.isoformat(), extra=1))
    other = store.versions()[0]
    assert store.rollback("out of it", "me", to=other).version == other
    assert store.decisions()[1].model_extra == {"extra": 1}


@pytest.mark.parametrize("identity", ["../../escaped", "a/b", "", "x" * 300, "x\0"])
def test_an_id_that_is_no_name_of_a_file_is_refused(store, models, identity):
    rewrite(models, PRODUCTION, lambda decision: decision.update(id=identity))
    with pytest.raises(CorruptModel, match="production"):
        store.decisions()
    assert not list(models.parent.glob("escaped*"))


@pytest.mark.parametrize(
    "change",
    [
        {"training": None},
        {"training": [1]},
        {"training": {"created_at": "0001-01-01T00:00:00", "history": [{"seconds": 1e300}]}},
        {"training": {"created_at": "2026-01-01T00:00:00", "history": [{"seconds": None}, {"seconds": "long"}]}},
        {"training": {"best_epoch": 1, "history": [{"validation_accuracy": "0.9x"}]}},
    ],
)
def test_a_training_of_nonsense_is_served_and_corrected(tmp_path, small_dataset, change):
    models = Path(shutil.copytree(STORES / "format_2", tmp_path / "models"))
    store = LocalModelStore(base_path=str(models))
    for version in store.versions():
        rewrite(models, f"{version}/{MANIFEST}", lambda manifest: manifest.update(change))
    with Service(store, tmp_path / "labelled") as service:
        assert service.client.get("/model").json()["validation_accuracy"] is None
        correction = {"image": small_dataset.test.images[0].tolist(), "label": 3}
        for status in (201, 200):
            assert service.client.post("/corrections", json=correction).status_code == status
        assert service.client.get("/corrections").json()["waiting"] == 1


def test_a_manifest_survives_json(store, deployed):
    manifest = store.manifest(deployed)
    assert ModelManifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_the_old_names_of_the_stores_are_answered():
    import mnist_pipeline.stores

    with pytest.raises(AttributeError, match=r"as_resource now; without Dagster use .*\.LocalModelStore$"):
        _ = mnist_pipeline.stores.LocalModelStoreResource
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mnist_pipeline.stores.nonsense


def test_the_environment_chooses_the_store(models):
    assert store_from_environment(Environment.read({"MODEL_DIR": str(models)})).versions()


@pytest.fixture
def of_other_images(models: Path, deployed: str) -> str:
    """What is deployed is of another task: larger images, of which the network makes as many features."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["task"]["image_shape"] = [29, 29, 1]

    manifest = LocalModelStore(base_path=str(models)).manifest(deployed)
    (models / deployed / MANIFEST).write_text(manifest.model_dump_json())  # the first format had no shape
    rewrite(models, f"{deployed}/{MANIFEST}", change)
    return deployed


@EARLIER
def test_a_deployed_model_of_other_images_is_replaced_by_force_only(environment, instance, of_other_images):
    pipeline = Pipeline(environment, instance)
    with pytest.raises(dg.Failure, match=r"compared with: images must be uint8 \(N, 29, 29\).*'manual' or 'force'"):
        pipeline.run(digit_classifier=TINY)
    assert pipeline.store.production().version == of_other_images
    with pytest.raises(dg.Failure, match="is for images of"):
        pipeline.run("batch_digit_predictions")
    force = {"strategy": "force", "reason": "other images"}
    pipeline.run("production_digit_classifier", production_digit_classifier=force)
    assert pipeline.store.production().version != of_other_images


@EARLIER
def test_a_deployed_model_of_other_images_is_served_with_pictures_as_it_needs_them(store, of_other_images):
    with Service(store) as service:
        assert service.client.get("/model").json()["image_shape"] == [29, 29, 1]
        [prediction] = service.predict(encode(drawn()), prepared=True).json()["predictions"]
        assert np.shape(prediction["prepared"]) == (29, 29)


@pytest.mark.parametrize("models", ["format_3"], indirect=True)
def test_a_file_that_is_for_other_images_than_its_manifest_says_is_not_served(store, of_other_images):
    with Service(store) as service:
        assert service.client.get("/readyz").json()["problems"] == ["what is deployed now cannot be used"]
        assert service.client.get("/model").status_code == 503
