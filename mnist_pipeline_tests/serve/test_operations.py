"""For those who run it: metrics, health, who may ask, what a browser may do, the command line."""

import os
import re
import signal
import subprocess
import sys
from typing import Any

import httpx
import pytest

from mnist_pipeline_tests.live import wait_until
from mnist_pipeline_tests.serve.service import Service, process
from mnist_pipeline_tests.serve.test_predict import ARRAY, error
from mnist_pipeline_tests.task.drawing import drawn, encode

TOKEN = "a-secret-of-the-tests"


def test_metrics_count_requests_errors_batches_confidence_and_name_the_model(service, deployed):
    service.client.post("/predict", json={"images": [ARRAY, ARRAY]})
    service.predict(b"nonsense")
    service.client.get("/no/such/page")
    text = service.client.get("/metrics").text
    assert f'mnist_model_info{{model="{deployed}",weights_sha256="' in text
    for name, value in {
        'mnist_requests_total{path="/predict",status="200"}': 1,
        'mnist_requests_total{path="/predict",status="422"}': 1,
        'mnist_requests_total{path="other",status="404"}': 1,
        'mnist_errors_total{code="bad_image"}': 1,
        'mnist_errors_total{code="not_found"}': 1,
        'mnist_request_seconds_count{path="/predict"}': 2,
        "mnist_batch_images_sum": 2,
        "mnist_confidence_count": 2,
        'mnist_deployments_total{outcome="served"}': 1,
    }.items():
        assert service.metric(name) == value, name
    assert service.metric("process_resident_memory_bytes") > 1e6


def test_what_is_deployed_with_its_metrics_when_and_why(service, store, deployed):
    answer = service.client.get("/model").json()
    decision, manifest = store.production(), store.manifest(deployed)
    assert answer["model"] == deployed
    assert answer["deployed_because"] == "a test"
    assert answer["test_accuracy"] == decision.test_accuracy
    assert answer["validation_accuracy"] == manifest.training.best("validation_accuracy")
    assert answer["weights_sha256"] == manifest.weights_sha256


def test_it_is_not_healthy_when_a_thread_of_it_died(store, deployed, monkeypatch):
    from mnist_pipeline.serve.deployment import DeploymentFollower

    with Service(store) as service:
        assert service.client.get("/healthz").json() == {"healthy": True}
        monkeypatch.setattr(DeploymentFollower, "look", lambda self: sys.exit())  # an injected fault
        wait_until(lambda: service.client.get("/healthz").status_code == 503, "the fault to be noticed")


def test_a_defect_is_answered_in_the_same_shape_and_the_service_goes_on(service, monkeypatch):
    from mnist_pipeline.serve import predicting

    def defect(*_: object) -> None:
        raise RuntimeError("secret details")

    with monkeypatch.context() as patch:
        patch.setattr(predicting, "read_images", defect)  # an injected fault
        status, code, message = error(service.client.post("/predict", json={"image": ARRAY}))
    assert (status, code) == (500, "internal")
    assert "secret" not in message
    assert httpx.post(f"{service.url}/predict", json={"image": ARRAY}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [("GET", "/nope", (404, "not_found")), ("GET", "/predict", (405, "method_not_allowed"))],
)
def test_what_is_not_there_is_answered_in_the_same_shape(service, method, path, expected):
    assert error(service.client.request(method, path))[:2] == expected


def test_a_parameter_of_the_wrong_type_is_named(service):
    status, code, message = error(service.predict(encode(drawn()), probabilities="maybe"))
    assert (status, code) == (422, "bad_parameter")
    assert message.startswith("probabilities: ")
    assert error(service.predict(encode(drawn()), probabilties=True))[2].startswith("probabilties: ")


def test_the_token_guards_everything_but_the_pages_and_the_probes(store, deployed, labelled):
    with Service(store, labelled, token=TOKEN) as service:
        for path in ("/", "/review", "/healthz", "/readyz", "/docs", "/openapi.json", "/static/draw.js"):
            assert service.client.get(path).status_code == 200, path
        attempts: list[dict[str, str]] = [
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": TOKEN},
            {"Authorization": "Bearer é"},
            {"Authorization": f"Basic {TOKEN}"},
        ]
        for method, path in [
            ("POST", "/predict"),
            ("GET", "/model"),
            ("GET", "/metrics"),
            ("POST", "/corrections"),
            ("GET", "/review/items"),
        ]:
            for headers in attempts:
                encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
                answer = service.client.request(method, path, headers=encoded)
                assert error(answer)[:2] == (401, "unauthorized")
                assert answer.headers["WWW-Authenticate"] == "Bearer"
        for scheme in ("Bearer", "bearer", "BEARER"):  # RFC 9110, section 11.1
            service.client.headers["Authorization"] = f"{scheme} {TOKEN}"
            assert service.client.post("/predict", json={"image": ARRAY}).status_code == 200
        assert TOKEN not in service.client.get("/metrics").text


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        *({"Origin": origin} for origin in ("https://evil.example", "null", "http://[")),
    ],
)
def test_pages_of_other_sites_cannot_write(service, labelled, headers):
    answer = service.client.post("/corrections", json={"image": ARRAY, "label": 7}, headers=headers)
    assert error(answer)[:2] == (403, "foreign_origin")
    assert not labelled.exists()
    assert service.client.get("/", headers=headers).status_code == 200  # a link from elsewhere


def test_the_own_page_can_write_also_behind_a_proxy(service):
    for headers in ({"Origin": service.url}, {"Origin": "https://digits.example", "Sec-Fetch-Site": "same-origin"}):
        answer = service.client.post("/predict", json={"image": ARRAY}, headers=headers)
        assert answer.status_code == 200


def test_browsers_are_told_to_load_nothing_from_elsewhere(service):
    for path in ("/", "/review", "/docs"):
        answer = service.client.get(path)
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'")
        assert ("unsafe" in policy) is (path == "/docs")
        assert "https:" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert not re.search(r'(src|href)="(https?:)?//', answer.text)


def test_the_examples_of_the_document_work_as_they_are(service):
    paths = service.client.get("/openapi.json").json()["paths"]
    tried = 0
    for path in ("/predict", "/corrections"):
        content = paths[path]["post"]["requestBody"]["content"]["application/json"]
        examples = [example["value"] for example in content.get("examples", {}).values()] or [content["example"]]
        for example in examples:
            assert service.client.post(path, json=example).is_success
            tried += 1
    assert tried == 3


def test_the_command_line_serves_until_it_is_told_to_stop(store, deployed, tmp_path):
    storage: dict[str, Any] = {"STORAGE_ROOT": str(tmp_path), "SERVE_TOKEN": TOKEN}
    with process("--store", store.base_path, **storage) as (url, server, log_file):
        assert url.startswith("http://127.0.0.1:")
        answer = httpx.post(f"{url}/predict", json={"image": ARRAY}, headers={"Authorization": f"Bearer {TOKEN}"})
        assert answer.json()["model"] == deployed
        assert httpx.get(f"{url}/model").status_code == 401
        server.send_signal(signal.SIGTERM)
        # It ends by the signal, as uvicorn raises it again, or just after it: seldom by 0.
        assert server.wait(60) in (-signal.SIGTERM, 0)
        log = log_file.read_text()
    assert "Application shutdown complete" in log
    assert TOKEN not in log


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["--port", "70000"], {}, "error: --port: Input should be less than or equal to 65535 (got '70000')"),
        (["--reload-seconds", "soon"], {}, "error: --reload-seconds: Input should be a valid number"),
        (["--batch-wait-ms", "2"], {}, "error: --batch-wait-ms is gone: requests share no forward pass any more"),
        (["--max-batch-images", "8"], {}, "error: --max-batch-images is gone: "),
        ([], {"SERVE_TOKEN": "a b"}, "error: SERVE_TOKEN: only visible ASCII characters"),
        ([], {"FEEDBACK": "perhaps"}, "error: FEEDBACK: Input should be 'on' or 'off'"),
        ([], {"MODEL_STORE": "s3"}, "error: MODEL_STORE=s3 needs S3_MODEL_BUCKET"),
    ],
)
def test_a_users_mistake_is_answered_with_a_sentence(arguments, variables, message, tmp_path):
    command = [sys.executable, "-m", "mnist_pipeline.serve", *arguments]
    answer = subprocess.run(
        command, env=os.environ | variables, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 1
    assert answer.stderr.startswith(message)
    assert "Traceback" not in answer.stderr


def test_help_names_every_setting_with_its_default():
    command = [sys.executable, "-m", "mnist_pipeline.serve", "--help"]
    text = " ".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    for word in ("--host", "--port", "--store", "--threads", "--reload-seconds", "SERVE_TOKEN", "(default: 8000)"):
        assert word in text
