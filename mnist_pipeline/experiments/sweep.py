"""A sweep as somebody wrote it down: which settings are varied, in which range, by which method, with which seeds."""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from mnist_pipeline.files.yaml_file import read_yaml
from mnist_pipeline.ml.settings import TrainingSettings
from mnist_pipeline.stores.objects import SWEEP_NAME
from mnist_pipeline.task.settings import Settings

MAX_TRIALS = 10_000

MAX_NUMBER = 1e12
"""The largest value of a range: no setting allows more."""

WHOLE = (int, int | None)
"""The types of settings that are whole numbers."""

Value = bool | int | float | str | list[int] | None
"""A value of a setting."""


class SweepInvalid(ValueError):
    """The sweep cannot be carried out; the message says which name is wrong, and what is allowed."""


class Dimension(Settings):
    """The values of one setting that are tried: the `choices`, or all from `low` to `high`."""

    choices: list[Value] | None = Field(None, min_length=1, description="The values.")
    low: int | float | None = Field(None, ge=-MAX_NUMBER, le=MAX_NUMBER, description="The least value.")
    high: int | float | None = Field(None, ge=-MAX_NUMBER, le=MAX_NUMBER, description="The largest value.")
    step: int | float | None = Field(
        None, gt=0, le=MAX_NUMBER, description="The distance of two values; any value when not given."
    )
    log: bool = Field(False, description="Each order of magnitude is as likely as another; for learning rates.")

    @model_validator(mode="after")
    def _choices_or_a_range(self) -> Self:
        if self.choices is not None:
            if {"low", "high", "step", "log"} & self.model_fields_set:
                raise ValueError("give choices, or low and high, not both")
            texts = [json.dumps(choice) for choice in self.choices]
            if len(set(texts)) < len(texts):
                raise ValueError(f"choices has one value twice: {self.choices}")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give choices, or low and high")
        if not self.low < self.high:  # neither is NaN, which is less than nothing
            raise ValueError(f"low must be less than high, not {self.low} and {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs a low above 0, and has no step")
        return self

    @property
    def values(self) -> list[Any] | None:
        """All values, in their order; None for a range that has any number of them."""
        if self.choices is not None:
            return list(self.choices)
        assert self.low is not None and self.high is not None
        step = self.step or (1 if isinstance(self.low, int) and isinstance(self.high, int) else None)
        if step is None or self.log:
            return None
        values = (self.low + number * step for number in range(self.count or 0))
        return [value if isinstance(value, int) else round(value, 12) for value in values]

    @property
    def count(self) -> int | None:
        """The number of values; None where there is any number of them."""
        if self.choices is not None:
            return len(self.choices)
        assert self.low is not None and self.high is not None
        step = self.step or (1 if isinstance(self.low, int) and isinstance(self.high, int) else None)
        return None if step is None or self.log else math.floor((self.high - self.low) / step + 1e-9) + 1

    @property
    def ends(self) -> list[Any]:
        """Values that are allowed if all are."""
        return list(self.choices) if self.choices is not None else [self.low, self.high]


class Sweep(Settings):
    """The plan of a search.

    A configuration is a value for each setting of `space`; a trial is its training with one seed.
    """

    name: str = Field(pattern=SWEEP_NAME, description="Small letters, figures and underscores; names what is stored.")
    method: Literal["grid", "random", "tpe", "best"] = Field(
        "tpe",
        description="grid: all combinations; random; tpe: what did well is tried more (Bergstra et al. 2011); best: "
        "the best configurations of another sweep once more, with more seeds or epochs.",
    )
    configurations: int | None = Field(
        None,
        ge=1,
        le=MAX_TRIALS,
        description="How many are tried, besides the one without a change; of a grid all when not given.",
    )
    baseline: bool = Field(True, description="First try the configuration without a change, to compare with.")
    seeds: list[int] = Field([0], min_length=1, max_length=100, description="Each configuration is trained with each.")
    metric: Literal["validation_accuracy", "validation_loss"] = Field(
        "validation_accuracy", description="What decides which configuration is better, always on validation images."
    )
    search_seed: int = Field(0, ge=0, lt=2**31, description="With random and tpe: another one tries other values.")
    settings: dict[str, Value] = Field({}, description="Settings that all trials share, in place of the defaults.")
    space: dict[str, Any] = Field({}, description="The settings that are varied: choices, or low and high (step, log).")
    best_of: str | None = Field(
        None, pattern=SWEEP_NAME, description="With best: the other sweep; its settings hold, too."
    )

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds has one twice: {seeds}")
        if wrong := [seed for seed in seeds if not 0 <= seed < 2**31]:
            raise ValueError(f"seeds must be in 0..{2**31 - 1}, not {wrong}")
        return seeds

    @field_validator("settings", "space")
    @classmethod
    def _known(cls, named: dict[str, Any]) -> dict[str, Any]:
        for name in named:
            if name == "seed":
                raise ValueError("the seeds of trials are set by `seeds`")
            if name not in TrainingSettings.model_fields:
                known = ", ".join(sorted(set(TrainingSettings.model_fields) - {"seed"}))
                raise ValueError(f"there is no setting {name!r}, but {known}")
        return named

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if both := sorted(self.settings.keys() & self.space.keys()):
            raise ValueError(f"{both[0]} is in settings and in space: leave it out of one of them")
        if self.method == "best":
            if self.best_of is None or self.space:
                raise ValueError("method 'best' needs best_of, the name of a sweep, and has no space of its own")
        elif self.best_of is not None:
            raise ValueError(f"best_of has an effect only with method='best', not {self.method!r}")
        elif not self.space:
            raise ValueError("space is empty: name the settings that are to be varied")
        if self.configurations is None and self.method != "grid":
            raise ValueError(f"method {self.method!r} needs configurations: how many are to be tried")
        if self.search_seed and self.method not in ("random", "tpe"):
            raise ValueError(f"search_seed has an effect only with method='random' or 'tpe', not {self.method!r}")
        dimensions = self.dimensions()
        for name, dimension in dimensions.items():
            if self.method == "grid" and dimension.count is None:
                raise ValueError(f"space.{name}: a grid needs choices, or a step")
        grid = math.prod(dimension.count or 1 for dimension in dimensions.values())
        trials = min(self.configurations or MAX_NUMBER, grid if self.method == "grid" else MAX_NUMBER) * len(self.seeds)
        if trials > MAX_TRIALS:
            raise ValueError(f"that would be {trials:,.0f} trials, more than {MAX_TRIALS:,}: try fewer, or fewer seeds")
        self._require_allowed()
        return self

    def dimensions(self) -> dict[str, Dimension]:
        """Return the space, validated. Raises ValueError with the name of the setting."""
        found = {}
        for name, values in self.space.items():
            try:
                found[name] = Dimension.model_validate(values)
            except ValidationError as error:
                raise ValueError(f"space.{name}: {first_problem(error)}") from None
        return found

    def grid(self) -> Iterator[dict[str, Any]]:
        """Yield all combinations of a space in which each setting has a number of values, the last varied first."""
        dimensions = self.dimensions()
        for values in itertools.product(*(dimension.values or [] for dimension in dimensions.values())):
            yield dict(zip(dimensions, values, strict=True))

    def usual(self, name: str) -> Any:
        """Return the value of a setting in the configuration without a change."""
        return self.settings.get(name, TrainingSettings.model_fields[name].default)

    def sharing(self, settings: dict[str, Any]) -> "Sweep":
        """Return the sweep with these settings, too, where it has none of its own. Raises SweepInvalid."""
        return parse_sweep(self.model_dump() | {"settings": settings | self.settings}, self.name)

    def training_settings(self, values: dict[str, Any], seed: int) -> TrainingSettings:
        """Return the settings of a trial."""
        return TrainingSettings(**{**self.settings, **values, "seed": seed})

    def _require_allowed(self) -> None:
        """Every value must be allowed for its setting, and every combination of choices must make sense."""
        dimensions = self.dimensions()
        combinations = math.prod(len(dimension.ends) for dimension in dimensions.values())
        if combinations > MAX_TRIALS:
            raise ValueError(f"space has {combinations:,} combinations of choices and ends, more than {MAX_TRIALS:,}")
        for name, dimension in dimensions.items():
            numbers = [number for number in (dimension.low, dimension.high, dimension.step) if number is not None]
            if TrainingSettings.model_fields[name].annotation in WHOLE and not all(isinstance(n, int) for n in numbers):
                raise ValueError(f"space.{name}: it is a whole number, and so are low, high and step: {numbers}")
        if self.baseline:
            self._require_valid({}, "without a change (or set baseline: false): ")
        for values in itertools.product(*(dimension.ends for dimension in dimensions.values())):
            chosen = dict(zip(dimensions, values, strict=True))
            said = ", ".join(f"{name}={value!r}" for name, value in chosen.items())
            self._require_valid(chosen, f"with {said}: " if said else "")

    def _require_valid(self, values: dict[str, Any], said: str) -> None:
        try:
            self.training_settings(values, self.seeds[0])
        except ValidationError as error:
            raise ValueError(f"{said}{first_problem(error)}") from None


def read_sweep(file: Path) -> Sweep:
    """Return the sweep in a YAML file, by default with the name of the file.

    Raises SweepInvalid with the name of what is wrong and what is allowed.
    """
    try:
        content = read_yaml(file)
    except (OSError, ValueError) as error:
        raise SweepInvalid(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise SweepInvalid(f"{file} must have the form of the files in sweeps/: method, settings, space")
    return parse_sweep({"name": file.stem} | content, str(file))


def parse_sweep(content: dict[str, Any], source: str) -> Sweep:
    """Return a sweep that is written as `content`. Raises SweepInvalid, naming `source`."""
    try:
        return Sweep.model_validate(content)
    except ValidationError as error:
        raise SweepInvalid(f"{source}: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """Return the first problem in words, with the name of the field."""
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"]))
    return f"{f'{where}: ' if where else ''}{problem['msg'].removeprefix('Value error, ')}" + (
        f" (got {problem['input']!r})" if where and not isinstance(problem["input"], dict) else ""
    )
