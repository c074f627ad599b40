"""The files of a deployment on Kubernetes: held against the published schemas, and against each other."""

import json
import os
import re
from pathlib import Path
from typing import Any, cast

import jsonschema
import kubernetes_validate
import pytest
import yaml
from fastapi.routing import APIRoute
from importlib_resources import files
from referencing import Registry
from referencing.jsonschema import DRAFT7

from mnist_pipeline.definitions import build_definitions
from mnist_pipeline.environment import Environment
from mnist_pipeline.serve.operations import operations_routes
from mnist_pipeline.serve.settings import ServeSettings
from mnist_pipeline_tests.kubernetes_api import DEPLOY, LOCATION, SHARED, VALUES, validate
from mnist_pipeline_tests.live import PROJECT

SERVICE: list[dict[str, Any]] = list(yaml.safe_load_all((DEPLOY / "service.yaml").read_text()))
CHART = "DAGSTER_CHART"
"""The variable that names the folder of Dagster's chart, unpacked (helm pull dagster/dagster --untar)."""


def test_manifests_fit_the_schemas_of_the_api():
    kinds = [manifest["kind"] for manifest in SERVICE]
    assert kinds == [
        *("ServiceAccount", "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy")
    ]
    for manifest in SERVICE:
        validate(manifest)
    wrong = json.loads(json.dumps(SERVICE[1]).replace("readinessProbe", "readynessProbe"))
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        validate(wrong)


def test_the_service_is_looked_for_where_it_answers_and_has_no_rights():
    account, deployment, service, scaler, budget, policy = SERVICE
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    routes = operations_routes(ServeSettings(), cast(Any, None), cast(Any, None)).routes
    paths = {route.path for route in routes if isinstance(route, APIRoute)}
    probed = {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {name: probe["path"] for name, probe in probed.items()} == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }
    assert {probe["path"] for probe in probed.values()} <= paths
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    assert budget["spec"]["selector"]["matchLabels"] == policy["spec"]["podSelector"]["matchLabels"] == labels
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]  # each `apply` would set them back
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    assert not pod["automountServiceAccountToken"]
    for shared in (SHARED, VALUES["dagsterDaemon"], VALUES["dagsterWebserver"], LOCATION):
        of_pod, of_container = (
            (shared["podSpecConfig"]["securityContext"], shared["containerConfig"]["securityContext"])
            if "podSpecConfig" in shared
            else (shared["podSecurityContext"], shared["securityContext"])
        )
        assert (of_pod, of_container) == (pod["securityContext"], container["securityContext"])
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]


def test_both_images_find_what_they_are_told_of():
    [service] = SERVICE[1]["spec"]["template"]["spec"]["containers"]
    of_service = {entry["name"]: entry["value"] for entry in service["env"]}
    of_pipeline = {entry["name"]: entry["value"] for entry in LOCATION["env"] if "value" in entry}
    assert of_service["STORAGE_ROOT"] == of_pipeline["STORAGE_ROOT"]
    assert [source["secretRef"] for source in service["envFrom"]] == LOCATION["envSecrets"]
    known = {name.upper() for name in Environment.model_fields} | {"OMP_NUM_THREADS"}
    assert all(name in known or name.startswith("DAGSTER_POSTGRES_") for name in of_pipeline)
    history = yaml.safe_load((PROJECT / "deploy" / "dagster.postgres.yaml").read_text())["storage"]["postgres"]
    asked = {value["env"] for value in history["postgres_db"].values() if isinstance(value, dict)}
    assert asked <= {entry["name"] for entry in LOCATION["env"]}  # by commands in the pod of the code location
    webserver = VALUES["dagsterWebserver"]
    assert webserver["readinessProbe"]["httpGet"]["port"] == webserver["service"]["port"]
    file = of_pipeline["EXECUTOR_CONFIG"].removeprefix("/srv/")
    image = (PROJECT / "Containerfile.pipeline").read_text()
    assert f"COPY {file} {Path(file).parent}/" in image
    assert "WORKDIR /srv" in image
    assert f"!{file}" in (PROJECT / ".dockerignore").read_text().splitlines()


def test_the_examples_of_the_executor_are_accepted(tmp_path):
    text = (DEPLOY / "executor.yaml").read_text()
    examples = re.sub("^# (?=compute|per_step|  )", "", text, flags=re.MULTILINE)
    file = tmp_path / "executor.yaml"
    file.write_text(examples)
    assert {*yaml.safe_load(examples)} == {"max_concurrent", "compute", "per_step_k8s_config"}
    found = {"EXECUTOR": "k8s", "EXECUTOR_CONFIG": str(file), "STORAGE_ROOT": str(tmp_path)}
    assert build_definitions(Environment.read(found)).executor


def test_values_fit_the_schemas_of_the_chart():
    """Of the chart and of the one within it, with the definitions of Kubernetes that the tests have anyway."""
    if not (folder := os.environ.get(CHART)):
        pytest.skip(f"{CHART} names no folder of Dagster's chart")
    chart = Path(folder)
    inner = chart / "charts" / "dagster-user-deployments"
    values = merged(yaml.safe_load((chart / "values.yaml").read_text()), VALUES)
    inner_values = merged(yaml.safe_load((inner / "values.yaml").read_text()), values["dagster-user-deployments"])
    schemas = files("kubernetes_validate").joinpath("kubernetes-json-schema", "v1.37.0-local", "_definitions.json")
    kinds = {"definitions": json.loads(schemas.read_text().replace("#/$defs/", "#/definitions/"))["$defs"]}
    registry: Any = Registry(retrieve=lambda _: DRAFT7.create_resource(kinds))  # type: ignore[call-arg]
    for place, found in ((chart, values), (inner, inner_values | {"global": values["global"]})):
        schema = json.loads((place / "values.schema.json").read_text())
        jsonschema.Draft7Validator(schema, registry=registry).validate(found)


def merged(values: Any, over: Any) -> Any:
    """As Helm merges values: mappings by their keys, all else replaced."""
    if not (isinstance(values, dict) and isinstance(over, dict)):
        return over
    return values | {name: merged(values.get(name), value) for name, value in over.items()}
