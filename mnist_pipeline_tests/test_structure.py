"""Which way imports point, what only the task knows, and how long things are."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mnist_pipeline
from mnist_pipeline_tests.task.examples import SPEC

PACKAGE = Path(mnist_pipeline.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

MAY_IMPORT = {
    "files": set(),
    "task": {"files"},
    "ml": {"files", "task"},
    "variables": {"files"},
    "environment": {"files", "task", "variables"},
    "stores": {"files", "task", "ml", "environment"},
    "experiments": {"files", "task", "ml", "environment", "variables", "stores"},
    "defs": {"files", "task", "ml", "environment", "variables", "stores", "experiments"},
    "serve": {"files", "task", "ml", "environment", "stores"},
    "definitions": {"environment", "stores", "experiments", "defs"},
    "runs": {"files", "stores", "experiments", "defs", "definitions", "problem", "history"},
    "history": {"environment", "defs", "problem"},
    "problem": set(),
    "notebook": {"environment", "ml", "stores", "experiments", "definitions"},
    "commands": {"files", "ml", "environment", "stores", "experiments", "runs", "history"},
    "__main__": {"environment", "stores", "experiments", "runs", "history", "defs", "commands", "problem"},
    "run_launcher": {"defs"},
    "__init__": set(),
}
"""Each folder or file at the root, and the others that it may import."""

NO_DAGSTER = ("files", "task", "ml", "stores", "experiments", "serve", "environment", "variables")

KEPT_NAMES = re.compile(
    r"mnist_pipeline(\.task\.known\.mnist)?|(raw|processed)_mnist_data|labelled_digits|(production_)?digit_classifier|(batch_)?digit_predictions"
    "|mnist_(source|dir)|^mnist$|mnist-token|mnist_`|mnist_(requests|request_seconds|errors|batch_images|confidence|predictions"
    "|needs_review|unlike_training_data|corrections|deployments|model_info)",
    re.IGNORECASE,
)
"""The package, assets, resources, variables, the folder of raw data, and the metrics that dashboards ask for."""

THE_TASK = "digit|mnist"
SIDE, PIXELS = SPEC.image_shape[0], SPEC.image_shape[0] * SPEC.image_shape[1]


def place(module: Path) -> str:
    """The folder or file at the root of the package that a module belongs to."""
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(module):
    own = {name.split(".")[1] for name in imported(module) if name.startswith("mnist_pipeline.")}
    assert own - {place(module)} <= MAY_IMPORT[place(module)]


def test_only_what_dagster_sees_imports_dagster():
    """Variables ask it about schedules, in a function."""
    found = {place(path) for path in MODULES for name in imported(path) if name.split(".")[0].startswith("dagster")}
    assert found - {"variables"} == {"defs", "definitions", "notebook", "runs", "history"}
    parts = [f"mnist_pipeline.{'.'.join(p.relative_to(PACKAGE).with_suffix('').parts)}" for p in MODULES]
    parts = [name for name in parts if name.split(".")[1] in NO_DAGSTER and not name.endswith("__")]
    code = f"import json, sys\nimport {', '.join(parts)}\nprint(json.dumps('dagster' in sys.modules))"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(run.stdout) is False
    assert len(parts) > 40


def words(module: Path) -> Iterator[str]:
    """Names and texts in a module's syntax tree, docstrings too, without the names that are kept."""
    for node in ast.walk(ast.parse(module.read_text())):
        for field, value in ast.iter_fields(node):
            if isinstance(value, str) and field != "type_comment":
                yield KEPT_NAMES.sub("", value)


def numbers(module: Path) -> Iterator[object]:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Constant):
            yield node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
            yield from (f"range {argument.value!r}" for argument in node.args if isinstance(argument, ast.Constant))


@pytest.mark.parametrize(
    "module", [path for path in MODULES if place(path) != "task"], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_only_the_task_knows_the_task(module):
    known = [word for word in words(module) if re.search(THE_TASK, word, re.IGNORECASE)]
    known += [word for word in words(module) if re.search(rf"\b({SIDE}|{PIXELS})\b|ten classes|0\.\.9\b", word)]
    known += [str(number) for number in numbers(module) if number in (SIDE, PIXELS, f"range {SPEC.classes}")]
    assert known == []


def test_pages_ask_what_the_task_is():
    pages = [*(PACKAGE / "serve/static").glob("*.html"), *(PACKAGE / "serve/static").glob("*.js")]
    assert len(pages) >= 5
    for page in pages:
        text = KEPT_NAMES.sub("", page.read_text())
        assert not re.search(rf"{THE_TASK}|\b{SIDE}\b|< {SPEC.classes};", text, re.IGNORECASE), page


def test_no_file_and_no_function_is_too_long():
    assert {path.name: lines for path in MODULES if (lines := len(path.read_text().splitlines())) > 300} == {}
    functions = {
        f"{path.name}:{node.name}": node.end_lineno - node.lineno + 1
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    }
    assert {name: lines for name, lines in functions.items() if lines > 60} == {}
    assert len(functions) > 250


RIDDLES = (
    *("What", "Whether", "Where", "Which", "How", "When", "By", "Of", "For", "From", "As", "To", "Up", "Into", "With"),
    *("Until", "Among", "After", "Before", "In", "On", "None"),
)


def test_what_explains_the_code_stands_by_itself():
    """Docstrings, and texts below constants and fields: no fragment that needs the name before it to be understood."""
    texts = [
        (path.relative_to(PACKAGE), node.value.value)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    assert len(texts) > 400
    assert [text for text in texts if text[1].split()[0] in RIDDLES] == []
    assert [text for text in texts if text[1].split("\n\n")[0].rstrip()[-1] not in ".:"] == []
