"""The service runs where nothing is installed but what it needs."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest

from mnist_pipeline_tests.live import PROJECT
from mnist_pipeline_tests.serve.service import process
from mnist_pipeline_tests.serve.test_predict import ARRAY

ABSENT = {"torch", "torchvision", "dagster", "matplotlib", "sklearn", "scipy", "pyarrow", "onnx", "pandas"}
MAX_MIB = 350
COPIED = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "mnist_pipeline", "deploy/entrypoint.sh")


def test_nothing_that_the_service_imports_needs_the_pipeline():
    code = f"""
import json, sys
import mnist_pipeline.serve.__main__, mnist_pipeline.serve.app, mnist_pipeline.stores
print(json.dumps(sorted({ABSENT!r} & set(sys.modules))))
"""
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(run.stdout) == []


def test_what_the_service_needs_is_part_of_what_the_project_needs():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())

    def name(requirement: str) -> str:
        return re.split(r"[\[<>=]", requirement)[0]

    needed = {name(requirement) for requirement in project["project"]["dependencies"]}
    brought_by_uvicorn = {"httptools", "uvloop"}  # uvicorn[standard]
    assert {name(requirement) for requirement in project["dependency-groups"]["serve"]} <= needed | brought_by_uvicorn


@pytest.mark.live
def test_the_container_file_makes_an_environment_in_which_it_serves(store, deployed, tmp_path: Path):
    """The commands of the Containerfile, run in a folder of their own by a Python of their own."""
    lines = (PROJECT / "Containerfile").read_text().splitlines()
    commands = [line.removeprefix("RUN python ") for line in lines if line.startswith("RUN ")]
    copied = [
        name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1] if not name.startswith("--")
    ]
    assert (len(commands), sorted(copied)) == (3, sorted(COPIED))
    folder, python = tmp_path / "srv", tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    folder.mkdir()
    subprocess.run(["cp", "-r", *(PROJECT / name for name in COPIED), folder], check=True)
    for command in commands:
        subprocess.run([python, *shlex.split(command)], cwd=folder, check=True, capture_output=True)
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    assert not ABSENT & {path.name for path in site.iterdir()}
    size = sum(path.lstat().st_blocks * 512 for path in site.rglob("*")) / 2**20
    print(f"{size:.0f} MiB")
    assert size < MAX_MIB
    checked = [python, "-m", "mnist_pipeline.serve", "--store", store.base_path, "--check", deployed]
    assert '"median_ms"' in subprocess.run(checked, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    variables: dict[str, Any] = {"STORAGE_ROOT": str(tmp_path / "storage"), "RETRAIN_CRON": "0 3 * * 0"}
    with process("--store", store.base_path, python=str(python), **variables) as (url, _, _):
        assert httpx.post(f"{url}/predict", json={"image": ARRAY}).json()["model"] == deployed
        assert httpx.get(f"{url}/docs").status_code == 200
