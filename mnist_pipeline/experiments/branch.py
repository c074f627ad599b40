"""Experiments beside a deployment: copies of its values and models, to change anything without touching it.

    branches/<name>/branch.json    about the experiment; the folder has another name until it is whole
    branches/<name>/storage/       what STORAGE_ROOT is otherwise: values, labelled images, models, predictions
    branches/<name>/home/          its DAGSTER_HOME

With EXPERIMENT=<name> in the environment, all commands work there.
"""

import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil
from pydantic import BaseModel, Field, ValidationError

from mnist_pipeline.environment import EXPERIMENT_NAME, Environment
from mnist_pipeline.experiments.naming import find_version
from mnist_pipeline.files.atomic import write_bytes
from mnist_pipeline.files.folders import walk
from mnist_pipeline.files.storage import reading, storage_path
from mnist_pipeline.ml.manifest import ModelManifest
from mnist_pipeline.stores import ModelStore, ModelStoreError, store_at, store_from_environment
from mnist_pipeline.stores.copying import copy_in_use
from mnist_pipeline.stores.state import State

RECORD = "branch.json"

COPIED = {"data_dir": "data", "labelled_dir": "labelled"}
"""The places that are copied file by file."""


class BranchRecord(BaseModel, frozen=True):
    """The content of `branch.json`."""

    created_at: datetime
    """UTC."""
    versions: tuple[str, ...] = Field(description="The versions that came from the deployment.")
    test_sets: dict[str, int] = Field(
        description="How often each set of test images had decided, by its content digest, as the deployment knows."
    )
    files: int
    bytes: int


class Branch:
    """An experiment of a deployment, also one that is not there yet."""

    def __init__(self, deployment: Environment, name: str) -> None:
        """`deployment` is the environment of the deployment itself.

        Raises ModelStoreError if it is that of an experiment, or for what is no name.
        """
        if not re.match(EXPERIMENT_NAME, name):
            raise ModelStoreError(f"{name!r} is no name of an experiment: small letters, figures, - and _")
        if deployment.experiment:
            raise ModelStoreError(f"EXPERIMENT={deployment.experiment} is set: unset it, experiments do not nest")
        self.deployment, self.name = deployment, name
        self.environment = deployment.in_branch(name)
        self.folder = deployment.branch_folder(name)

    @property
    def home(self) -> Path:
        """The folder of its run history."""
        return self.folder / "home"

    def store(self) -> ModelStore:
        """Return its model store."""
        return store_from_environment(self.environment)

    def record(self) -> BranchRecord:
        """Return what is recorded about it. Raises ModelStoreError if there is no such experiment."""
        try:
            return BranchRecord.model_validate_json((self.folder / RECORD).read_bytes())
        except FileNotFoundError:
            there = ", ".join(branch_names(self.deployment)) or "none"
            raise ModelStoreError(f"there is no experiment {self.name!r}; there are: {there}") from None
        except ValidationError as error:
            raise ModelStoreError(f"{self.folder / RECORD} is damaged, discard {self.name}: {error}") from error

    def trained(self) -> list[str]:
        """Return the versions that are its own, newest first."""
        known = self.record().versions
        return [version for version in self.store().versions() if version not in known]

    def candidate(self, version: str | None = None) -> tuple[str, ModelManifest]:
        """Return the version to promote, as it is called in the store of the experiment, and its manifest.

        It is the one that is named (the beginning of it, or a trial of a sweep there), else what the experiment's own
        gate deployed, else the newest one that was trained there. Raises ModelStoreError if there is none.
        """
        if version is not None:
            return version, find_version(self.store(), version).manifest
        trained, deployed = self.trained(), self.store().production()
        if not trained:
            raise ModelStoreError(f"nothing was trained in {self.name} yet: make run EXPERIMENT={self.name}")
        name = deployed.version if deployed and deployed.version in trained else trained[0]
        return name, self.store().manifest(name)

    def count_decisions(self) -> int:
        """Add the decisions of its gate to those that the deployment counts, and return how many were new.

        They looked at the same test images, and each look makes the next one prove less.
        """
        record, now = self.record(), self.store().state().test_sets
        new = {digest: count - record.test_sets.get(digest, 0) for digest, count in now.items()}
        new = {digest: count for digest, count in new.items() if count > 0}

        def counted(state: State) -> State | None:
            sums = {digest: state.test_sets.get(digest, 0) + count for digest, count in new.items()}
            return state.model_copy(update={"test_sets": state.test_sets | sums}) if new else None

        store_from_environment(self.deployment).change_state(counted)
        _write(self.folder, record.model_copy(update={"test_sets": record.test_sets | now}))
        return sum(new.values())

    def discard(self) -> None:
        """Delete it, also what a killed command left of it.

        Raises ModelStoreError if there is none, or if processes work in it.
        """
        if not self.folder.exists() and not self._unfinished():
            self.record()  # says which there are
        if self.folder.exists():
            if working := self._processes():
                raise ModelStoreError(
                    f"{self.name} is in use by the processes {', '.join(map(str, working))}: end them"
                )
            self.folder.rename(self.folder.with_name(f".{self.name}.{uuid.uuid4().hex[:8]}"))  # gone at once, or not
        for folder in self._unfinished():
            shutil.rmtree(folder)

    def _unfinished(self) -> list[Path]:
        return [*self.folder.parent.glob(f".{self.name}.*")]

    def _processes(self) -> list[int]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("DAGSTER_HOME") == str(self.home):
                    found.append(process.pid)
        return found


def branch_names(deployment: Environment) -> list[str]:
    """Return the names of the experiments of a deployment, in order."""
    return sorted(path.parent.name for path in deployment.branch_folder("x").parent.glob(f"[!.]*/{RECORD}"))


@contextmanager
def making(branch: Branch) -> Iterator[tuple[Path, BranchRecord]]:
    """Copy values, labelled images and the models in use; give the new folder, which gets its name after the block.

    Raises ModelStoreError if there is such an experiment already, or nothing lasts that could be copied. What a killed
    command leaves is deleted by `discard`.
    """
    if branch.folder.exists():
        raise ModelStoreError(f"there is an experiment {branch.name} already: discard it, or choose another name")
    if branch.deployment.in_memory():
        raise ModelStoreError(
            "memory:// holds values within one process only: set STORAGE_ROOT to a folder or a bucket"
        )
    new = branch.folder.with_name(f".{branch.name}.{uuid.uuid4().hex[:8]}")
    new.mkdir(parents=True)
    try:
        files = size = 0
        for place, folder in COPIED.items():
            target = Path(branch.environment.place(place, folder))
            copied = _copied(branch.deployment, place, folder, new / target.relative_to(branch.folder))
            files, size = files + copied[0], size + copied[1]
        store = Path(branch.environment.model_address()).relative_to(branch.folder)
        state, versions = copy_in_use(store_from_environment(branch.deployment), store_at(str(new / store)))
        record = BranchRecord(
            created_at=datetime.now(UTC), versions=tuple(versions), test_sets=state.test_sets, files=files, bytes=size
        )
        _write(new, record)
        yield new, record
        new.rename(branch.folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _copied(deployment: Environment, place: str, folder: str, target: Path) -> tuple[int, int]:
    """Copy the files of a place of the deployment; how many they were, and their bytes."""
    root = storage_path(deployment.place(place, folder), deployment.s3_endpoint_url)
    files = walk(root, deployment.folder_links).files
    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with reading(root / name) as content, (target / name).open("wb") as copy:
            shutil.copyfileobj(content, copy)
    return len(files), sum(entry.size for entry in files.values())


def _write(folder: Path, record: BranchRecord) -> None:
    write_bytes(folder / RECORD, record.model_dump_json(indent=2).encode())
