"""What is deployed is what answers, and nothing that goes wrong at the store stops the service."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from torch import nn

from mnist_pipeline.ml.export import to_onnx
from mnist_pipeline.ml.settings import TrainingSettings
from mnist_pipeline.stores import LocalModelStore, S3ModelStore
from mnist_pipeline.stores.decisions import new_decision
from mnist_pipeline.stores.exports import ONNX
from mnist_pipeline.stores.state import PRODUCTION
from mnist_pipeline.stores.versions import MANIFEST
from mnist_pipeline_tests.live import wait_until
from mnist_pipeline_tests.serve.conftest import GOOD
from mnist_pipeline_tests.serve.service import Service
from mnist_pipeline_tests.serve.test_predict import ARRAY, error
from mnist_pipeline_tests.task.examples import SPEC, TINY
from mnist_pipeline_tests.versions import deploy, save

MANY = {"images": [ARRAY] * 40}


def served(service: Service) -> str:
    return service.client.get("/readyz").json()["model"]


@pytest.fixture
def two_versions(store, good, trained) -> list[tuple[str, bytes]]:
    """Names and weights; the first is deployed."""
    versions = [
        (save(store, good, GOOD).name, good.weights),
        (save(store, trained, TrainingSettings(**TINY)).name, trained.weights),
    ]
    deploy(store, *versions[0])
    return versions


def test_it_starts_without_a_model_and_serves_as_soon_as_there_is_one(store, good):
    with Service(store) as service:
        assert error(service.client.post("/predict", json=MANY))[:2] == (503, "no_model")
        assert error(service.client.get("/model"))[:2] == (503, "no_model")
        ready = service.client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json() == {"ready": False, "model": None, "problems": ["no model is deployed yet"]}
        assert service.client.get("/healthz").status_code == 200
        name = save(store, good, GOOD).name
        deploy(store, name, good.weights)
        wait_until(lambda: service.client.get("/readyz").status_code == 200, "the first model")
        assert service.client.post("/predict", json=MANY).json()["model"] == name


def test_what_is_deployed_answers_not_what_is_newest(store, two_versions):
    with Service(store) as service:
        assert store.versions()[0] == two_versions[1][0]
        assert service.client.post("/predict", json=MANY).json()["model"] == two_versions[0][0]


def test_what_waits_is_served_once_it_is_approved(store, two_versions, trained):
    name = two_versions[1][0]
    waiting = new_decision(
        outcome="waiting",
        strategy="approval",
        reason="as good",
        version=name,
        weights_sha256=store.manifest(name).weights_sha256,
        incumbent=store.production(),
        actor="run 1",
    )
    with Service(store) as service:
        before = service.client.get("/model").json()
        assert (before["model"], before["strategy"]) == (two_versions[0][0], "force")
        store.record(waiting)
        store.record(waiting.model_copy(update={"id": "other", "outcome": "refused", "weights_sha256": "0" * 64}))
        store.approve(name, "looked at it", "kim")
        wait_until(lambda: served(service) == name, "the approved model")
        model = service.client.get("/model").json()
        found = [model[key] for key in ("strategy", "deployed_because", "actor", "reference")]
        assert found == ["approval", "looked at it", "kim", name]


def test_promotions_and_rollbacks_are_followed_and_no_request_is_dropped_or_mixed(store, two_versions):
    done = Event()
    with Service(store) as service, ThreadPoolExecutor(8) as clients:
        alone = {}
        for name, weights in reversed(two_versions):
            deploy(store, name, weights)
            wait_until(lambda name=name: served(service) == name, name)
            alone[name] = [p["confidence"] for p in service.client.post("/predict", json=MANY).json()["predictions"]]

        def ask() -> list[str]:
            names = []
            while not done.is_set():
                answer = service.client.post("/predict", json=MANY)
                assert answer.status_code == 200, answer.text
                name = answer.json()["model"]
                confidences = [p["confidence"] for p in answer.json()["predictions"]]
                assert confidences == pytest.approx(alone[name], abs=1e-4)
                names.append(name)
            return names

        asked = [clients.submit(ask) for _ in range(8)]
        try:
            for name, weights in islice(cycle(reversed(two_versions)), 9):
                deploy(store, name, weights)
                wait_until(lambda name=name: served(service) == name, name)
            store.rollback("a test", "test", to=two_versions[0][0])
            wait_until(lambda: served(service) == two_versions[0][0], "the rollback")
            assert service.client.get("/model").json()["strategy"] == "rollback"
        finally:
            done.set()
        answered = [future.result() for future in asked]
    assert {name for names in answered for name in names} == {name for name, _ in two_versions}
    first, second = (np.array(confidences) for confidences in alone.values())
    assert np.abs(first - second).max() > 0.01  # mixed answers would have been seen


@pytest.mark.parametrize("damage", ["onnx", "manifest", "manifest of newer code", "pointer", "not finite"])
def test_a_deployment_that_fails_verification_is_refused_and_the_old_one_goes_on(store, two_versions, trained, damage):
    (first, _), (second, weights) = two_versions
    root = Path(store.base_path)
    with Service(store) as service:
        if damage == "not finite":
            broken = to_onnx(Broken(), SPEC)
            second = save(store, trained, TrainingSettings(**TINY), onnx=broken).name
            deploy(store, second, weights)
        else:
            deploy(store, second, weights)
            target = {"onnx": f"{second}/{ONNX}", "pointer": PRODUCTION}.get(damage, f"{second}/{MANIFEST}")
            # Before the service looks at it, or after: either way it must not be served broken.
            whole = (root / target).read_bytes()
            newer = json.dumps(json.loads(whole) | {"format_version": 4}).encode() if "newer" in damage else None
            deploy(store, first, store.load(first)[1]) if damage != "pointer" else None
            (root / target).write_bytes(newer or whole[: len(whole) // 2])
            if damage != "pointer":
                decision = store.production().model_copy(update={"version": second, "id": "another"})
                (root / PRODUCTION).write_text(decision.model_dump_json())
        wait_until(lambda: service.client.get("/readyz").json()["problems"], "the refusal")
        assert service.client.get("/readyz").json()["problems"] == ["what is deployed now cannot be used"]
        assert service.client.get("/readyz").status_code == 200
        for _ in range(5):
            assert service.client.post("/predict", json=MANY).status_code == 200
            time.sleep(0.1)
        assert service.metric('mnist_deployments_total{outcome="refused"}') == 1
        good_again = deploy_over(store, root, first)
        wait_until(lambda: not service.client.get("/readyz").json()["problems"], "the repair")
        assert served(service) == good_again


class Broken(nn.Module):
    """Its outputs are not finite."""

    def forward(self, inputs):
        return inputs.flatten(1)[:, : SPEC.classes] * float("nan")


def deploy_over(store: LocalModelStore, root: Path, name: str) -> str:
    """Deploy, also where the pointer is damaged."""
    (root / PRODUCTION).unlink()
    deploy(store, name, store.load(name)[1])
    return name


def test_a_store_that_is_gone_does_not_stop_the_answers(store, two_versions):
    with Service(store) as service:
        gone = Path(store.base_path).rename(Path(store.base_path).with_name("gone"))
        wait_until(lambda: service.client.get("/readyz").json()["problems"], "the loss to be noticed")
        assert service.client.get("/readyz").status_code == 200
        assert service.client.post("/predict", json=MANY).status_code == 200
        gone.rename(store.base_path)
        wait_until(lambda: not service.client.get("/readyz").json()["problems"], "the store to be back")


def test_on_s3_and_when_s3_is_out_of_reach(s3_bucket, good):
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    store = S3ModelStore(bucket=s3_bucket, endpoint_url=f"http://127.0.0.1:{port}", max_attempts=1, timeout_seconds=1)
    name = save(store, good, GOOD).name
    deploy(store, name, good.weights)
    with Service(store) as service:
        assert service.client.post("/predict", json=MANY).json()["model"] == name
        server.stop()
        wait_until(lambda: service.client.get("/readyz").json()["problems"], "the fault to be noticed")
        assert service.client.get("/readyz").json() == {
            "ready": True,
            "model": name,
            "problems": ["the model store cannot be reached"],
        }
        assert service.client.post("/predict", json=MANY).status_code == 200
        assert service.metric('mnist_deployments_total{outcome="store_error"}') >= 1  # one for each look at it
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        server.start()
        wait_until(lambda: not service.client.get("/readyz").json()["problems"], "the store to be back")
    server.stop()


def test_the_reload_interval_is_a_setting(store, two_versions):
    with Service(store, reload_seconds=600) as service:
        deploy(store, *two_versions[1])
        time.sleep(1)
        assert served(service) == two_versions[0][0]
