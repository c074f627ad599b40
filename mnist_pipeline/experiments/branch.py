"""Experiments beside a deployment: copies of its values and models, to change anything without touching it.

    branches/<name>/branch.json    about the experiment; the folder has another name until it is whole
    branches/<name>/storage/       what STORAGE_ROOT is otherwise: values, labelled images, models, predictions
    branches/<name>/home/          its DAGSTER_HOME

With EXPERIMENT=<name> in the environment, all commands work there.
"""

import os
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
from mnist_pipeline.variables import absolute

RECORD = "branch.json"


class BranchDamaged(ModelStoreError):
    """The record of an experiment cannot be read."""


class BranchRecord(BaseModel, frozen=True):
    """The content of `branch.json`."""

    created_at: datetime
    """UTC."""
    deployment: str = Field(description="The address of the deployment's model store.")
    versions: tuple[str, ...] = Field(description="The versions that came from the deployment.")
    test_sets: dict[str, int] = Field(
        description="How often each set of test images had decided, by its content digest, as the deployment knows."
    )
    files: int = Field(description="How many files were copied, models left out.")
    bytes: int = Field(description="Their size.")


class Branch:
    """An experiment of a deployment, also one that is not there yet: one branch, beside the deployment."""

    def __init__(self, deployment: Environment, name: str) -> None:
        """`deployment` is the environment of the deployment itself.

        Raises ModelStoreError if it is that of an experiment, or for what is no name.
        """
        if not re.fullmatch(EXPERIMENT_NAME, name):
            raise ModelStoreError(f"{name!r} is no name of an experiment: small letters, figures, - and _")
        if deployment.experiment:
            raise ModelStoreError(f"EXPERIMENT={deployment.experiment} is set: unset it, experiments do not nest")
        self.deployment, self.name = deployment, name
        self.environment = deployment.in_branch(name)
        self.folder = deployment.branch_folder(name)

    @property
    def home(self) -> Path:
        """The folder of its run history."""
        return Path(self.environment.experiment_home)

    def store(self) -> ModelStore:
        """Return its model store."""
        return store_from_environment(self.environment)

    def record(self) -> BranchRecord:
        """Return what is recorded about it. Raises ModelStoreError if there is no such experiment."""
        try:
            record = BranchRecord.model_validate_json((self.folder / RECORD).read_bytes())
            if record.deployment != self.deployment.model_address():
                raise ModelStoreError(f"{self.name} in {self.folder} is an experiment of the store {record.deployment}")
            return record
        except FileNotFoundError:
            there = ", ".join(branch_names(self.deployment)) or "none"
            raise ModelStoreError(f"there is no experiment {self.name!r}; there are: {there}") from None
        except ValidationError as error:
            raise BranchDamaged(f"{self.folder / RECORD} is damaged: discard {self.name}") from error

    def require_absent(self) -> None:
        """Raise ModelStoreError if there is such an experiment."""
        if self.folder.exists():
            raise ModelStoreError(f"there is an experiment {self.name} already: discard it, or choose another name")

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
        store = store_from_environment(self.deployment)
        record, now = self.record(), self.store().state().test_sets
        new = {digest: count - record.test_sets.get(digest, 0) for digest, count in now.items()}
        new = {digest: count for digest, count in new.items() if count > 0}

        def counted(state: State) -> State | None:
            sums = {digest: store.earlier_decisions(state, digest) + count for digest, count in new.items()}
            return state.model_copy(update={"test_sets": state.test_sets | sums}) if new else None

        store.change_state(counted)
        _write(self.folder, record.model_copy(update={"test_sets": record.test_sets | now}))
        return sum(new.values())

    def discard(self) -> None:
        """Delete it, also what a killed command left of it.

        Raises ModelStoreError if there is none, or if processes work in it.
        """
        unfinished = self._unfinished()
        if self.folder.exists() or not unfinished:
            with suppress(BranchDamaged):
                self.record()  # says which there are, or that it is another deployment's
        if self.folder.exists():
            if working := self._processes():
                raise ModelStoreError(
                    f"{self.name} is in use by the processes {', '.join(map(str, working))}: end them"
                )
            going = _temporary(self.folder)
            self.folder.rename(going)  # gone at once, or not
            unfinished.append(going)
        for folder in unfinished:
            if folder.is_symlink():
                folder.unlink()
            else:
                shutil.rmtree(folder)

    def _unfinished(self) -> list[Path]:
        """The folders of commands that were killed; those of commands at work are named by their process."""
        found = self.folder.parent.glob(f".{self.name}.*")
        return [path for path in found if not psutil.pid_exists(int(path.name.split(".")[2]))]

    def _processes(self) -> list[int]:
        """The processes of its DAGSTER_HOME, but for the one that asks, and those that started it."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                variables = process.environ()
                home = variables.get("DAGSTER_HOME")
                is_here = absolute(home) == str(self.home) if home else variables.get("EXPERIMENT") == self.name
                found += [process.pid] if is_here else []
        asking = psutil.Process()
        return sorted({*found} - {asking.pid, *(parent.pid for parent in asking.parents())})


def branch_names(deployment: Environment) -> list[str]:
    """Return the names of the experiments of a deployment, in order."""
    return sorted(path.parent.name for path in deployment.branch_folder("x").parent.glob(f"[!.]*/{RECORD}"))


@contextmanager
def making(branch: Branch) -> Iterator[tuple[Path, BranchRecord]]:
    """Copy values, labelled images and the models in use; give the new folder, which gets its name after the block.

    Raises ModelStoreError if there is such an experiment already, or nothing lasts that could be copied. What a killed
    command leaves is deleted by `discard`.
    """
    branch.require_absent()
    if branch.deployment.in_memory():
        raise ModelStoreError(
            "memory:// holds values within one process only: set STORAGE_ROOT to a folder or a bucket"
        )
    new = _temporary(branch.folder)
    new.mkdir(parents=True)
    try:
        files = size = 0
        for source, target in _copied_places(branch):
            copied = _copied(branch, source, new / Path(target).relative_to(branch.folder))
            files, size = files + copied[0], size + copied[1]
        store = Path(branch.environment.model_address()).relative_to(branch.folder)
        state, versions = copy_in_use(store_from_environment(branch.deployment), store_at(str(new / store)))
        if not files and not versions:
            raise ModelStoreError("there is nothing to copy yet: make run")
        record = BranchRecord(
            created_at=datetime.now(UTC),
            deployment=branch.deployment.model_address(),
            versions=tuple(versions),
            test_sets=state.test_sets,
            files=files,
            bytes=size,
        )
        _write(new, record)
        yield new, record
        try:
            new.rename(branch.folder)
        except OSError as error:
            raise ModelStoreError(f"{branch.folder} was made by another command meanwhile: {error}") from error
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")


def _copied_places(branch: Branch) -> list[tuple[str, str]]:
    """The folders or addresses that are copied file by file, each with its folder in the experiment."""
    ours, theirs = branch.deployment, branch.environment
    places = {"data_dir": "data", "labelled_dir": "labelled"}
    found = [(ours.place(name, folder), theirs.place(name, folder)) for name, folder in places.items()]
    if ours.dataset != "folder":  # what was downloaded; a folder of images is only read
        found.append((ours.dataset_settings().directory, theirs.dataset_settings().directory))
    return found


def _copied(branch: Branch, source: str, target: Path) -> tuple[int, int]:
    """Copy the files of a folder or an address of the deployment; how many they were, and their bytes."""
    root = storage_path(source, branch.deployment.s3_endpoint_url)
    files = walk(root, branch.deployment.folder_links).files
    if isinstance(root, Path):  # the storage root itself may be such a place
        branches = branch.folder.parent
        files = {name: entry for name, entry in files.items() if not (root / name).is_relative_to(branches)}
    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with reading(root / name) as content, (target / name).open("wb") as copy:
            shutil.copyfileobj(content, copy)
    return len(files), sum(entry.size for entry in files.values())


def _write(folder: Path, record: BranchRecord) -> None:
    write_bytes(folder / RECORD, record.model_dump_json(indent=2).encode())
