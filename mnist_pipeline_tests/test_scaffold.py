"""Projects that are made of this one: `make new`."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dotenv import dotenv_values

from mnist_pipeline_tests.task.others import write_idx, write_photos
from scaffold.project import _files

PROJECT = Path(__file__).parents[1]
ASSETS = """
import json
from {package}.definitions import defs
keys = defs.resolve_asset_graph().get_all_asset_keys()
print(json.dumps(sorted(key.to_user_string() for key in keys)))
"""


def made(name: str, *options: str, folder: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "scaffold", name, *options]
    variables = os.environ | {"PYTHONPATH": str(PROJECT)}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)


def python(project: Path, *arguments: str, **variables: str) -> str:
    """Run Python in a project, with nothing of this one, and return what it printed."""
    kept = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "OMP_NUM_THREADS": "1"}
    home = project / ".dagster_home"
    home.mkdir(exist_ok=True)
    command = [sys.executable, "-W", "ignore", *arguments]
    environment = kept | {"DAGSTER_HOME": str(home), "PYTHONPATH": str(project)} | variables
    ran = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    return ran.stdout


def lines_with(project: Path, words: str) -> list[str]:
    """The lines and the names of files that have one of the words."""
    files = [path for path in project.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert len(files) > 150
    found = [str(path.relative_to(project)) for path in files]
    found += [f"{path}: {line}" for path in files for line in path.read_text().splitlines()]
    return [line for line in found if re.search(words, line.removeprefix(str(project)), re.IGNORECASE)]


def test_a_project_for_a_folder_of_images_has_no_trace_of_this_ones_data(tmp_path):
    write_photos(tmp_path / "mnist_photos", ("daisy", "rose"), 3)  # a path may be called as it likes
    target = tmp_path / "made" / "street_flowers"
    options = ("--dataset", "folder", "--dataset-dir", str(tmp_path / "mnist_photos"))
    ran = made("street_flowers", "--to", str(target), *options)
    assert ran.returncode == 0, ran.stderr
    assert f"cd {target}" in ran.stdout
    traces = [line for line in lines_with(target, r"mnist|digit|benchmarks\b|@[A-Z]+@") if "DATASET_DIR='" not in line]
    assert traces == []
    assert sorted(path.name for path in target.parent.iterdir()) == ["street_flowers"]
    for command in (["check"], ["format", "--check"]):
        python(target, "-m", "ruff", *command, "--no-cache", ".")
    assert json.loads(python(target, "-c", ASSETS.format(package="street_flowers_pipeline"))) == [
        "backtest",
        "batch_street_flowers_predictions",
        "labelled_street_flowers",
        "leaderboard",
        "model_evaluation",
        "prediction_input",
        "processed_street_flowers_data",
        "production_street_flowers_classifier",
        "raw_street_flowers_data",
        "street_flowers_classifier",
        "street_flowers_predictions",
        "trial",
    ]
    assert "StreetFlowersCNN" in (target / "street_flowers_pipeline/task/networks/street_flowers_cnn.py").read_text()
    for command in (["init", "--quiet"], ["add", "."]):
        subprocess.run(["git", *command], cwd=target, check=True)
    staged = subprocess.run(["git", "ls-files"], cwd=target, check=True, capture_output=True, text=True).stdout.split()
    assert ".env.example" in staged
    assert ".env" not in staged


@pytest.mark.parametrize(
    ("dataset", "allowed"),
    [
        ("fashion_mnist", "FashionMNIST|fashion-mnist"),
        ("kmnist", "KMNIST|Kuzushiji-MNIST"),
        ("emnist_letters", "EMNIST|an extension of MNIST|letters and digits"),
        ("emnist_balanced", "EMNIST|an extension of MNIST|letters and digits|digits and letters|string.digits"),
    ],
)
def test_a_project_for_a_data_set_with_a_name_knows_that_one_alone(tmp_path, dataset, allowed):
    ran = made("things", "--to", str(tmp_path / "things"), "--dataset", dataset)
    assert ran.returncode == 0, ran.stderr
    others = [
        line for line in lines_with(tmp_path / "things", "mnist|digit") if not re.search(allowed, line, re.IGNORECASE)
    ]
    assert others == []
    found = python(
        tmp_path / "things",
        "-c",
        "from things_pipeline.task.known import known_names, known\n"
        "from things_pipeline.environment import Environment\n"
        "print(known_names(), known('things').name, Environment().dataset_settings().dataset)",
    )
    assert found == "['things'] things things\n"
    for command in (["check"], ["format", "--check"]):
        python(tmp_path / "things", "-m", "ruff", *command, "--no-cache", ".")


def test_a_project_for_digits_keeps_what_is_true_of_them(tmp_path):
    ran = made("numbers", "--to", str(tmp_path / "numbers"))
    assert ran.returncode == 0, ran.stderr
    assert lines_with(tmp_path / "numbers", "mnist_pipeline|digit_classifier|raw_mnist_data|benchmarks/") == []
    python(tmp_path / "numbers", "-m", "ruff", "check", "--no-cache", ".")
    code = (
        "from numbers_pipeline.environment import Environment; print(Environment.read({'MNIST_DIR': '/m'}).dataset_dir)"
    )
    assert python(tmp_path / "numbers", "-c", code) == "/m\n"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("2flowers", [], "NAME must be 1 to 31 small letters"),
        ("Flowers", [], "NAME must be"),
        ("class", [], "no word of Python"),
        ("a" * 32, [], "NAME must be"),
        ("my-flowers", [], "NAME must be"),
        ("mnist_like", ["--dataset", "kmnist"], "choose one without mnist and digit"),
        ("my_pipeline", [], "NAME=my_pipeline is a word for other things"),
        ("batch", [], "NAME=batch is a word for other things"),
        ("flowers", ["--dataset-dir", "."], "DATASET_DIR without DATASET"),
        ("flowers", ["--dataset", "folder", "--dataset-dir", str(PROJECT / "presets")], "presets has 0 folders"),
        ("flowers", ["--dataset", "cifar"], "DATASET must be one of"),
        ("flowers", ["--dataset", "folder"], "needs DATASET_DIR"),
        ("flowers", ["--dataset", "folder", "--dataset-dir", "/no/such/folder"], "there is no folder /no/such/folder"),
        ("models", ["--dataset", "folder", "--dataset-dir", "."], "NAME=models is a word for other things"),
        ("folder", ["--dataset", "kmnist"], "NAME=folder is a word for other things"),
        ("flowers", ["--to", "full"], "full is not an empty folder"),
        ("flowers", ["--to", "full/file"], "full/file is not an empty folder"),
        ("flowers", ["--to", str(PROJECT / "flowers")], "is inside of this project"),
        ("flowers", ["--to", "full/file/below"], "cannot be written"),
    ],
    ids=str,
)
def test_what_cannot_be_made_is_refused_and_leaves_nothing(tmp_path, name, options, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    options = [str(tmp_path / option) if option.startswith("full") else option for option in options]
    ran = made(name, *([] if "--to" in options else ["--to", str(tmp_path / "new")]), *options)
    assert ran.returncode == 1
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
    assert (tmp_path / "full" / "file").read_text() == "mine"


def test_an_empty_folder_is_filled_and_paths_begin_where_the_command_does(tmp_path):
    photos = tmp_path / "it's #1 $HOME \\ photos"
    write_photos(photos, ("daisy", "rose"), 1)
    (tmp_path / "new").mkdir()
    (tmp_path / "here").mkdir()
    options = ("--dataset", "folder", "--dataset-dir", f"../{photos.name}")
    ran = made("flowers", "--to", "../new", *options, folder=tmp_path / "here")
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "new" / "flowers_pipeline").is_dir()
    assert dotenv_values(tmp_path / "new" / ".env") == {"DATASET_DIR": str(photos)}


def test_only_files_that_belong_to_the_project_are_taken_along(tmp_path):
    """Nothing that lies about in its folders: data, secrets, what an editor or a Finder leaves."""
    clone = tmp_path / "clone"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=False).stdout
    for name in filter(None, files.split("\0") if files else [str(path) for path in _files()]):
        if (PROJECT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            (clone / name).write_bytes((PROJECT / name).read_bytes())
    for stray in (".DS_Store", ".env", "__pycache__/x.pyc"):
        (clone / "mnist_pipeline" / stray).parent.mkdir(exist_ok=True)
        (clone / "mnist_pipeline" / stray).write_bytes(b"\xff\xfe secret")
    command = [sys.executable, "-W", "ignore", "-m", "scaffold", "flowers", "--to", str(tmp_path / "flowers")]
    for in_git in (False, True):
        if in_git:
            (clone / ".gitignore").write_text((clone / ".gitignore").read_text() + "*.bin\n")
            (clone / "mnist_pipeline" / "weights.bin").write_bytes(b"\xff\xfe large")
            shutil.rmtree(tmp_path / "flowers")
            subprocess.run(["git", "init", "--quiet"], cwd=clone, check=True)
            subprocess.run(["git", "add", *(name for name in files.split("\0") if name)], cwd=clone, check=True)
        variables = os.environ | {"PYTHONPATH": str(clone)}
        ran = subprocess.run(command, cwd=clone, env=variables, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert not [
            path for path in (tmp_path / "flowers").rglob("*") if path.is_file() and b"\xff" in path.read_bytes()
        ]
    (clone / "mnist_pipeline" / "known.orig").write_bytes(b"\xff\xfe")
    shutil.rmtree(tmp_path / "flowers")
    ran = subprocess.run(command, cwd=clone, env=variables, capture_output=True, text=True, check=False)
    assert "known.orig is no text: remove it, or let git ignore it" in ran.stderr
    assert not (tmp_path / "flowers").exists()


@pytest.mark.live
@pytest.mark.parametrize("dataset", ["folder", pytest.param("fashion_mnist", marks=pytest.mark.extended)])
def test_a_project_runs_and_passes_its_own_checks(tmp_path, dataset):
    """A part of its tests: those of its own data, of its structure and of one model store."""
    if dataset == "folder":
        write_photos(tmp_path / "data", ("daisy", "rose", "tulip"), 30)
    else:
        write_idx(tmp_path / "data", dataset, train=30, test=10)
    target = tmp_path / "my flowers"
    variables = [f"TO={target}", f"DATASET={dataset}", f"DATASET_DIR={tmp_path / 'data'}"]
    subprocess.run(["make", "new", "NAME=flowers", *variables], cwd=PROJECT, check=True)
    (target / "quick.yaml").write_text(
        "ops: {flowers_classifier: {config: {epochs: 2, batch_size: 16}},"
        " production_flowers_classifier: {config: {accuracy_threshold: 0.05}}}"
    )
    (target / ".dagster_home").mkdir()
    (target / ".dagster_home" / "dagster.yaml").write_text((target / "dagster.yaml").read_text())
    said = python(target, "-m", "flowers_pipeline", "run", "--config", "quick.yaml")
    assert "deployed:          flowers_cnn_" in said
    assert python(target, "-m", "mypy").startswith("Success")
    tests = [f"flowers_pipeline_tests/{name}" for name in ("task", "test_structure.py", "test_definitions.py")]
    passed = python(
        target, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not live", *tests, "-k", "not resnet and not densenet"
    )
    assert re.search(r"\d{3} passed", passed)
    assert " failed" not in passed
