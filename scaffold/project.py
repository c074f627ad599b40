"""The making of a project: which files are taken along, under which names, and what is written anew.

Everything is made in a folder beside the target and moved at the end: a project is there whole or not at all.
"""

import keyword
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mnist_pipeline.environment import TAKEN_NAMES, Environment, EnvironmentInvalid
from mnist_pipeline.task.known import known
from scaffold import edits

PROJECT = Path(__file__).resolve().parents[1]
TEMPLATES = Path(__file__).parent / "templates"

TAKEN_ALONG = (
    *("mnist_pipeline", "mnist_pipeline_tests", "presets", "sweeps", "notebooks", "deploy", ".ci", ".github"),
    *(".env.example", ".gitignore", "Containerfile", "Containerfile.pipeline", ".dockerignore", "LICENSE", "Makefile"),
    *("constraints.txt", "dagster.yaml", "pyproject.toml", "workspace.yaml"),
)
"""The files and folders that a project is made of."""

FILES = """Of `DATASET={dataset}`, the default, it holds {files}, plain or with `.gz`;
where they are missing they are downloaded (`DATASET_SOURCE`), by the addresses in `task/known/`.
"""

TAKEN = TAKEN_NAMES | {"folder", "none", "pipeline", "raw", "processed", "batch", "production", "model", "test"}
MIN_CLASSES = 2

METRICS = (
    r"requests|request_seconds|errors|batch_images|confidence|predictions"
    r"|needs_review|unlike_training_data|corrections|deployments|model_info"
)

NAME = r"[a-z][a-z0-9_]{0,30}"


class NotMade(ValueError):
    """The project cannot be made; the message says what to change."""


class Plan(NamedTuple):
    """What is to be made, where."""

    name: str
    to: Path
    dataset: str
    """The data set of this project that the new one is for: `mnist`, another one by its name, or `folder`."""
    dataset_dir: Path | None

    @classmethod
    def of(cls, name: str, to: Path | None, dataset: str | None, dataset_dir: Path | None) -> "Plan":
        """Return the plan with its defaults. Raises NotMade if a name, a folder or a data set will not do."""
        if not re.fullmatch(NAME, name) or name.endswith("_") or keyword.iskeyword(name):
            raise NotMade(
                f"NAME must be 1 to 31 small letters, figures and underscores, a letter first, and no word of Python: "
                f"flowers, street_signs; not {name!r}"
            )
        if name in TAKEN or name.endswith("_pipeline"):
            raise NotMade(f"NAME={name} is a word for other things here: say what is in the pictures, such as flowers")
        if dataset_dir and not dataset:
            raise NotMade(
                "DATASET_DIR without DATASET: say what is there, DATASET=folder for a folder of images a class"
            )
        dataset = dataset or "mnist"
        if any(word in name for word in ("mnist", "digit")) and dataset != "mnist":
            raise NotMade(f"NAME={name} is like the names that are replaced here: choose one without mnist and digit")
        to = (to or PROJECT.parent / name).expanduser().resolve()
        if to.exists() and (not to.is_dir() or any(to.iterdir())):
            raise NotMade(f"{to} is not an empty folder: name another one by TO")
        if to.is_relative_to(PROJECT):
            raise NotMade(f"{to} is inside of this project: name a folder outside by TO")
        directory = dataset_dir.expanduser().resolve() if dataset_dir else None
        if directory and not directory.is_dir():
            raise NotMade(f"DATASET_DIR: there is no folder {directory}")
        if directory and (not str(directory).isprintable() or "${" in str(directory)):
            raise NotMade(f"DATASET_DIR: {str(directory)!r} cannot stand in a file of variables")
        if dataset == "folder" and not directory:
            raise NotMade("DATASET=folder needs DATASET_DIR, a folder with a folder of images for each class")
        if dataset == "folder" and directory and len(classes := _folders(directory)) < MIN_CLASSES:
            raise NotMade(
                f"DATASET_DIR: {directory} has {len(classes)} folders, and needs one for each of 2 classes or more"
            )
        variables = {"DATASET": dataset} | ({"DATASET_DIR": str(directory)} if directory else {})
        try:
            Environment.read(variables | ({"DATASET_NAME": name} if dataset == "folder" else {}))
        except EnvironmentInvalid as error:
            raise NotMade(str(error)) from None
        return cls(name, to, dataset, directory)

    @property
    def package(self) -> str:
        """The name of the package."""
        return f"{self.name}_pipeline"

    @property
    def default_dataset(self) -> str:
        """The data set of the new project by its name there: its own, `folder`, or `mnist`."""
        return self.dataset if self.dataset in ("mnist", "folder") else self.name

    @property
    def datasets(self) -> str:
        """The values that DATASET has in the new project."""
        return "folder" if self.dataset == "folder" else f"{self.default_dataset}, or folder"

    @property
    def for_digits(self) -> bool:
        """Whether it is for the data set of this project, so that all that tells of digits stays true."""
        return self.dataset == "mnist"


def _folders(directory: Path) -> list[Path]:
    divided = directory / "train"
    return [path for path in (divided if divided.is_dir() else directory).iterdir() if path.is_dir()]


def make(plan: Plan) -> int:
    """Write the project and return the number of its files. Raises NotMade, and writes none, if it cannot be made."""
    try:
        plan.to.parent.mkdir(parents=True, exist_ok=True)
        return _make(plan)
    except OSError as error:
        raise NotMade(f"{plan.to} cannot be written: {error}") from error
    except subprocess.CalledProcessError as error:
        raise NotMade(f"{' '.join(error.cmd)} failed: make install has ruff") from error
    except LookupError as error:
        raise NotMade(f"{error.args[0]}: it was changed, and the edit was not") from error


def _make(plan: Plan) -> int:
    with tempfile.TemporaryDirectory(prefix=f".{plan.to.name}-", dir=plan.to.parent) as temporary:
        made = Path(temporary) / plan.to.name
        for path in _files():
            target = made / renamed(str(path), plan)
            if not left_out(path, plan):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(renamed(edits.edited(str(path), _text(PROJECT / path), plan), plan))
                shutil.copymode(PROJECT / path, target)
        _write_anew(made, plan)
        _format(made)
        if traces := remaining_traces(made, plan):
            raise NotMade("these lines still tell of another data set, mend `scaffold/edits.py`:\n" + "\n".join(traces))
        count = sum(path.is_file() for path in made.rglob("*"))
        if plan.to.exists():
            plan.to.rmdir()
        made.rename(plan.to)
    return count


def _files() -> list[Path]:
    """The files to take along, relative to the project: what git does not ignore, and nothing hidden."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *TAKEN_ALONG]
    listed = ""
    with suppress(OSError):  # without git, or outside of a repository, all that is there
        listed = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False).stdout
    paths = [path for name in TAKEN_ALONG for path in (PROJECT / name, *(PROJECT / name).rglob("*"))]
    names = listed.split("\0") if listed else sorted(str(path.relative_to(PROJECT)) for path in paths)
    hidden = re.compile(r"/\.|\.pyc$")
    return [Path(name) for name in names if name and _is_own(PROJECT / name) and not hidden.search(name)]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError as error:
        raise NotMade(f"{path} is no text: remove it, or let git ignore it") from error


def _is_own(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def left_out(path: Path, plan: Plan) -> bool:
    """Whether the new project has no use for a file: it is about what earlier code stored, or about other data."""
    name = str(path).removeprefix("mnist_pipeline_tests/")
    if name.startswith(edits.LEFT_OUT_TESTS) or (not plan.for_digits and name.startswith(edits.TESTS_OF_DIGITS)):
        return True
    if plan.for_digits or path.parent != Path("mnist_pipeline/task/known") or path.name == "__init__.py":
        return False
    kept = {plan.dataset} | ({"_emnist"} if plan.dataset.startswith("emnist") else set())
    return path.stem not in kept


def renamed(text: str, plan: Plan) -> str:
    """Return a text or a path with the names of the new project: package, assets, network, metrics."""
    name, words = plan.name, plan.name.split("_")
    camel = "".join(word.capitalize() for word in words)
    replacements = {
        r"mnist_pipeline": plan.package,
        r"\b(raw|processed)_mnist_data": rf"\1_{name}_data",
        r"labelled_digits": f"labelled_{name}",
        r"digit_(?=clas|predictions|cnn)": f"{name}_",
        r"DIGIT_CNN": f"{name.upper()}_CNN",
        r"DigitCNN": f"{camel}CNN",
        rf"mnist_(?={METRICS}|`)": f"{name}_",
        r"mnist-(?=token|tests)": f"{name.replace('_', '-')}-",
    }
    if not plan.for_digits:
        replacements |= edits.words(plan)
    for pattern, replacement in replacements.items():
        text = re.sub(pattern, replacement, text)
    return text


def _write_anew(made: Path, plan: Plan) -> None:
    """The files that are not taken along but written: README, .env, and the pictures of the tests."""
    task = known(plan.dataset) if plan.dataset != "folder" else None
    readme = (TEMPLATES / "README.md").read_text()
    quoted = str(plan.dataset_dir).replace("\\", "\\\\").replace("'", "\\'")
    where = f"DATASET_DIR='{quoted}'\n" if plan.dataset_dir else ""
    lines = {
        "DATA": "your folder of images" if not task else f"the data set `{plan.default_dataset}`",
        "TITLE": plan.name.replace("_", " "),
        "WHERE": " (`.env` names that of this machine)" if plan.dataset_dir else "",
        "FILES": FILES.format(dataset=plan.default_dataset, files=", ".join(task.files)) if task else "",
    }
    for key, value in lines.items():
        readme = readme.replace(f"@{key}@", value)
    (made / "README.md").write_text(renamed(readme, plan))
    (made / ".env").write_text(
        f"# The variables of this machine; .env.example lists all. Git ignores this file.\n{where}"
    )
    if not plan.for_digits:
        for template in TEMPLATES.glob("*.py"):
            kind = template.stem.partition("__")[2]
            if kind in ("", "folder" if not task else "known"):
                target = made / f"{plan.package}_tests" / "task" / f"{template.stem.partition('__')[0]}.py"
                target.write_text(renamed(template.read_text(), plan))


def _format(made: Path) -> None:
    """Names of another length move lines and the order of imports."""
    for command in (["check", "--fix", "--quiet", "--exit-zero"], ["format", "--quiet"]):
        subprocess.run([sys.executable, "-m", "ruff", *command, "--no-cache", str(made)], check=True)


def remaining_traces(made: Path, plan: Plan) -> list[str]:
    """The lines that tell of another data set than the project's."""
    if plan.for_digits:
        return []
    allowed = re.compile(edits.allowed_words(plan), re.IGNORECASE)
    return [
        f"{path.relative_to(made)}:{number}: {line.strip()}"
        for path in sorted(made.rglob("*"))
        if path.is_file() and path.name != ".env"  # which has the path of the data
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search("mnist|digit", allowed.sub("", line), re.IGNORECASE)
    ]
