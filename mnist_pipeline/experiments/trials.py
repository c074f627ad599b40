"""The record of a sweep: its trials, and what each came to.

experiments/.named/<time>_<sweep>  empty: there is this sweep
experiments/.open/<sweep>          empty: the sweep has trials left to do
experiments/<sweep>/sweep.json     the sweep and all its trials; replaced by compare-and-swap
experiments/<sweep>/splits.json    the digests of the images that all its trials are trained and ranked on
experiments/<sweep>/<version>/...  a model version for each trial, as in the store itself
"""

import re
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator

from mnist_pipeline.experiments.search import next_configurations
from mnist_pipeline.experiments.sweep import MAX_TRIALS, Sweep
from mnist_pipeline.ml.manifest import SplitRecord
from mnist_pipeline.ml.records import Record
from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.datasets import SPLIT_RECORDS, SPLITS
from mnist_pipeline.stores.errors import CorruptModel, ModelStoreError, ObjectChanged, ObjectMissing, UnknownModel
from mnist_pipeline.stores.objects import EXPERIMENTS, NAMED_SWEEPS, OPEN_SWEEPS, SWEEP_NAME, time_text
from mnist_pipeline.stores.overview import sweep_names

SWEEP = "sweep.json"
TRIAL_NAME = re.compile(rf"(?P<sweep>{SWEEP_NAME.strip('^$')})/(?P<configuration>[0-9]{{3,}})-s(?P<seed>[0-9]+)")
"""Names of trials, which are the partitions in Dagster."""


class Trial(Record, extra="ignore"):
    """One training of a sweep, and what it came to. Losses are in nats, accuracies 0..1, both on validation images."""

    configuration: int = Field(description="The number of the configuration; 0 is the one without a change, if any.")
    seed: int
    values: dict[str, Any] = Field({}, description="The settings that were varied.")
    version: str | None = Field(None, description="The version that was trained, in the folder of the sweep.")
    problem: str | None = Field(None, description="Why there is none: the loss diverged, or its runs failed.")
    validation_accuracy: float | None = None
    validation_loss: float | None = None
    epochs: int | None = Field(None, description="Epochs that were trained, the chosen one or not.")
    seconds: float | None = Field(None, description="Wall clock of its epochs.")
    weights_bytes: int | None = Field(None, description="The size of the weights.")

    @property
    def is_done(self) -> bool:
        """True once it has a version, or a reason for having none."""
        return self.version is not None or self.problem is not None

    @property
    def key(self) -> tuple[int, int]:
        """Its identity among the trials of its sweep."""
        return self.configuration, self.seed


class SweepRecord(Record, extra="ignore"):
    """The content of `sweep.json`."""

    sweep: Sweep
    started_at: datetime
    trials: tuple[Trial, ...] = ()
    exhausted: bool = Field(False, description="True: there are no more configurations to try.")

    @field_validator("sweep", mode="wrap")
    @classmethod
    def _also_of_other_code(cls, content: Any, validate: ValidatorFunctionWrapHandler) -> Sweep:
        """A setting that there is no more, or of another range, is no reason to lose what was tried."""
        try:
            return validate(content)
        except ValidationError:
            if not isinstance(content, dict) or not isinstance(content.get("name"), str):
                raise
            return Sweep.model_construct(**content)

    @property
    def is_complete(self) -> bool:
        """True once every trial is done and there will be no more."""
        return self.exhausted and all(trial.is_done for trial in self.trials)

    def name_of(self, trial: Trial) -> str:
        """Return the name of a trial, which is that of its partition."""
        return f"{self.sweep.name}/{trial.configuration:03d}-s{trial.seed}"

    def with_trials(self, configurations: list[dict[str, Any]]) -> "SweepRecord":
        """Return the record with a trial more for each seed of each configuration."""
        number = max((trial.configuration + 1 for trial in self.trials), default=0 if self.sweep.baseline else 1)
        more = [
            Trial(configuration=number + position, seed=seed, values=values)
            for position, values in enumerate(configurations)
            for seed in self.sweep.seeds
        ]
        return self.model_copy(update={"trials": (*self.trials, *more)})


class Chosen(NamedTuple):
    """A trial and the sweep that it is of."""

    record: SweepRecord
    trial: Trial


class Sweeps:
    """The sweeps in a model store."""

    def __init__(self, store: ModelStore) -> None:
        self.store = store

    def models(self, name: str) -> ModelStore:
        """Return the versions that a sweep tried, as a store of their own."""
        return self.store.below(f"{EXPERIMENTS}{name}")

    def begin(self, sweep: Sweep) -> SweepRecord:
        """Start a sweep, or go on with one that was stopped; trials that are done stay so.

        Raises ModelStoreError if there is one of this name that tries something else, SweepInvalid if its settings do
        not go together with those of the sweep that it goes on from.
        """
        try:
            record = self.read(sweep.name)
        except UnknownModel:
            record = self._new(sweep)
        else:
            record = self._continued(record, sweep)
        if not record.is_complete:
            self.store.put(f"{OPEN_SWEEPS}{sweep.name}", b"")
        return record

    def open(self) -> list[str]:
        """Return the names of the sweeps that have trials left to do; a request, however many sweeps there are."""
        return [key.removeprefix(OPEN_SWEEPS) for key in self.store.list_objects(OPEN_SWEEPS)]

    def close(self, name: str) -> None:
        """Count a sweep as stopped or complete; `begin` goes on with it."""
        self.store.delete_object(f"{OPEN_SWEEPS}{name}")

    def names(self) -> list[str]:
        """Return the names of all sweeps, the one that was started last at first."""
        return sweep_names(self.store)

    def newest(self) -> str:
        """Return the name of the sweep that was started last. Raises UnknownModel if there is none."""
        if not (names := self.names()):
            raise UnknownModel("there is no sweep yet: make sweep CONFIG=sweeps/learning_rate.yaml starts one")
        return names[0]

    def read(self, name: str) -> SweepRecord:
        """Return the record of a sweep. Raises UnknownModel or CorruptModel."""
        return self._read(name)[0]

    def chosen(self, name: str) -> Chosen:
        """Return a trial by its name. Raises UnknownModel."""
        match = TRIAL_NAME.fullmatch(name)
        if not match:
            raise UnknownModel(f"{name!r} is not the name of a trial, such as learning_rate/007-s0")
        record, key = self.read(match["sweep"]), (int(match["configuration"]), int(match["seed"]))
        for trial in record.trials:
            if trial.key == key and record.name_of(trial) == name:
                return Chosen(record, trial)
        raise UnknownModel(f"the sweep {match['sweep']} has no trial {name}")

    def change(self, name: str, changed: Callable[[SweepRecord], SweepRecord]) -> SweepRecord:
        """Replace the record of a sweep by what `changed` makes of it, again where somebody else did so meanwhile."""
        while True:
            record, token = self._read(name)
            new = changed(record)
            if new == record:
                return record
            with suppress(ObjectChanged):
                self.store._replace(_key(name), _content(new), token)
                return new

    def propose(self, name: str) -> SweepRecord:
        """Add the next configuration, if there is one: it is recorded before it runs, and so does not run twice."""
        return self.change(name, self._proposing)

    def record(self, trial_name: str, result: Trial) -> SweepRecord:
        """Record what a trial came to. Once it has a version, that stays."""
        [sweep, _] = trial_name.split("/")

        def changed(record: SweepRecord) -> SweepRecord:
            trials = [result if t.key == result.key and t.version is None else t for t in record.trials]
            return record.model_copy(update={"trials": tuple(trials)})

        return self.change(sweep, changed)

    def splits(self, name: str, current: dict[str, SplitRecord]) -> dict[str, SplitRecord]:
        """Return the splits that all trials of a sweep are trained on: `current` if this is the first one."""
        key = f"{EXPERIMENTS}{name}/{SPLITS}"
        with suppress(ObjectChanged):
            self.store._create(key, SPLIT_RECORDS.dump_json(current, indent=2))
        return SPLIT_RECORDS.validate_json(self.store.read_object(key)[0])

    def has_left(self, name: str) -> bool:
        """Return whether anything of a sweep is there, also of one that was deleted while a trial was at work."""
        return bool(re.fullmatch(SWEEP_NAME, name)) and any(self.store.list_objects(f"{EXPERIMENTS}{name}/"))

    def delete(self, name: str) -> None:
        """Delete a sweep with its versions. Raises ModelStoreError for one that has trials left to do."""
        with suppress(UnknownModel, CorruptModel):  # a killed deletion left the rest; what is damaged can go
            if name in self.open() and not self.read(name).is_complete:
                raise ModelStoreError(f"the sweep {name} has trials left to do: stop it first (sweep --stop {name})")
        self.close(name)
        self.store.delete_object(_key(name))  # before the rest, so that no sweep without its versions is ever read
        for key in list(self.store.list_objects(f"{EXPERIMENTS}{name}/")):
            self.store.delete_object(key)
        for key in [key for key in self.store.list_objects(NAMED_SWEEPS) if key.partition("_")[2] == name]:
            self.store.delete_object(key)  # last, so that what a kill leaves is still named

    def _new(self, sweep: Sweep) -> SweepRecord:
        if sweep.best_of:
            sweep = sweep.sharing(self.read(sweep.best_of).sweep.settings)
        now = datetime.now(UTC)
        record = self._proposing(SweepRecord(sweep=sweep, started_at=now))
        self.store.put(f"{NAMED_SWEEPS}{time_text(now)}_{sweep.name}", b"")
        self.store.delete_object(f"{EXPERIMENTS}{sweep.name}/{SPLITS}")  # of a deleted sweep of this name
        try:
            self.store._create(_key(sweep.name), _content(record))
        except ObjectChanged:  # somebody else began it at the same moment
            return self.begin(sweep)
        return record

    def _continued(self, record: SweepRecord, sweep: Sweep) -> SweepRecord:
        if sweep.best_of:
            sweep = sweep.model_copy(update={"settings": record.sweep.settings | sweep.settings})
        if _unchanging(record.sweep) != _unchanging(sweep) or not _is_more(record.sweep, sweep):
            raise ModelStoreError(
                f"there is a sweep {sweep.name} that tries something else: give this one another name. (To a sweep "
                "configurations and seeds can be added, and nothing else changed)"
            )
        record = self.change(sweep.name, lambda found: _extended(found, sweep))
        if not record.exhausted and sweep.method != "tpe":  # those of tpe hang on the results of the others
            record = self.propose(sweep.name)
        return record

    def _proposing(self, record: SweepRecord) -> SweepRecord:
        if record.exhausted:
            return record
        best = self.read(record.sweep.best_of) if record.sweep.best_of else None
        configurations, exhausted = next_configurations(record, best)
        return record.with_trials(configurations).model_copy(update={"exhausted": exhausted})

    def _read(self, name: str) -> tuple[SweepRecord, str]:
        try:
            data, token = self.store.read_object(_key(name))
            return SweepRecord.model_validate_json(data), token
        except ObjectMissing:
            known = ", ".join(sorted(self.names()))
            raise UnknownModel(f"there is no sweep {name!r}, but {known or 'none yet'}") from None
        except ValidationError as error:
            raise CorruptModel(f"the record of the sweep {name} is damaged, or of other code: {error}") from error


def _key(name: str) -> str:
    return f"{EXPERIMENTS}{name}/{SWEEP}"


def _content(record: SweepRecord) -> bytes:
    return record.model_dump_json(indent=2).encode()


def _unchanging(sweep: Sweep) -> dict[str, Any]:
    """The part of a sweep that cannot be changed once it has begun."""
    return sweep.model_dump(mode="json", exclude={"configurations", "seeds"})


def _is_more(before: Sweep, sweep: Sweep) -> bool:
    """Return whether a sweep tries all that it tried before, and maybe more."""
    fewer = (sweep.configurations or MAX_TRIALS) < (before.configurations or MAX_TRIALS)
    return not fewer and set(before.seeds) <= set(sweep.seeds)


def _extended(record: SweepRecord, sweep: Sweep) -> SweepRecord:
    """The record of a sweep that has more configurations or seeds now; what was tried stays."""
    missing = [
        Trial(configuration=trial.configuration, seed=seed, values=trial.values)
        for trial in {trial.configuration: trial for trial in record.trials}.values()
        for seed in sweep.seeds
        if (trial.configuration, seed) not in {found.key for found in record.trials}
    ]
    exhausted = record.exhausted and record.sweep.configurations == sweep.configurations
    return record.model_copy(update={"sweep": sweep, "trials": (*record.trials, *missing), "exhausted": exhausted})
