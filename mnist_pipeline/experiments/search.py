"""The configurations that a sweep tries next, from its record alone: after a crash the search goes on as if nothing had
happened. Optuna is asked and told; its study is built anew each time and kept nowhere.
"""

import hashlib
import json
from itertools import islice
from typing import TYPE_CHECKING, Any

from mnist_pipeline.experiments.ranking import ranked
from mnist_pipeline.experiments.sweep import Dimension, Sweep, SweepInvalid

if TYPE_CHECKING:
    import optuna

    from mnist_pipeline.experiments.trials import SweepRecord

MOST_DRAWS = 100
"""So many draws without a configuration that was not tried yet: the space has no others."""


def next_configurations(record: "SweepRecord", best: "SweepRecord | None") -> tuple[list[dict[str, Any]], bool]:
    """Return the configurations to be tried next, and whether these are the last ones.

    All that do not hang on results come at once, those of `tpe` one at a time. `best` is the other sweep of the method
    `best`. Raises SweepInvalid if that one has no trial that succeeded.
    """
    sweep = record.sweep
    tried: list[dict[str, Any]] = []
    for trial in record.trials:
        if trial.values not in tried:
            tried.append(trial.values)
    new: list[dict[str, Any]] = [{}] if sweep.baseline and not record.trials else []
    known, wanted = [*tried, *new], (sweep.configurations or 0) + sweep.baseline
    usual = {name: sweep.usual(name) for name in sweep.space} if sweep.baseline else None  # that is no change
    match sweep.method:
        case "grid":
            untried = (values for values in sweep.grid() if values not in known and values != usual)
            new += islice(untried, max(0, wanted - len(known)) if sweep.configurations else None)
            return new, True
        case "best":
            others = [values for values in _best_of(best, sweep) if values not in known] if best else []
            return [*new, *others[: max(0, wanted - len(known))]], True
        case "random":
            while len(known) < wanted and (values := _drawn(sweep, record, known, usual)) is not None:
                new.append(values)
                known.append(values)
            return new, True
        case "tpe":
            if new or len(known) >= wanted:
                return new, len(known) >= wanted
            values = _drawn(sweep, record, known, usual)
            return ([values] if values is not None else []), values is None or len(known) + 1 >= wanted


def study_of(record: "SweepRecord", number: int) -> "optuna.Study":
    """Return the trials of a record as a study of Optuna, to ask for configuration `number`, or about importance."""
    import optuna
    from optuna.trial import TrialState, create_trial

    sweep, dimensions = record.sweep, record.sweep.dimensions()
    distributions = {name: _distribution(dimension) for name, dimension in dimensions.items()}
    seed = int.from_bytes(hashlib.sha256(f"{sweep.search_seed} {number}".encode()).digest()[:4], "big")
    sampler: optuna.samplers.BaseSampler = (
        optuna.samplers.RandomSampler(seed=seed)
        if sweep.method == "random"
        else optuna.samplers.TPESampler(seed=seed, constant_liar=True)  # those at work count as not worth another look
    )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        sampler=sampler, direction="maximize" if sweep.metric == "validation_accuracy" else "minimize"
    )
    scores = {row.configuration: row.score for row in ranked(record)}
    seen: set[int] = set()
    for trial in record.trials:
        if trial.configuration in seen:
            continue
        seen.add(trial.configuration)
        values = trial.values or {name: sweep.usual(name) for name in dimensions}
        parameters = {name: _coded(dimensions[name], values[name]) for name in dimensions}
        if not all(_holds(distributions[name], parameters[name]) for name in dimensions):
            continue  # the one without a change, outside of the space
        score = scores.get(trial.configuration)
        of_all = [other for other in record.trials if other.configuration == trial.configuration]
        if score is not None:
            state = TrialState.COMPLETE
        else:  # a configuration that cannot be trained counts as worse than all others
            state = TrialState.PRUNED if all(other.is_done for other in of_all) else TrialState.RUNNING
        study.add_trial(create_trial(params=parameters, distributions=distributions, value=score, state=state))
    return study


def _drawn(
    sweep: Sweep, record: "SweepRecord", known: list[dict[str, Any]], usual: dict[str, Any] | None
) -> dict[str, Any] | None:
    """A configuration that is not known yet; None if hardly any is left."""
    dimensions = sweep.dimensions()
    distributions = {name: _distribution(dimension) for name, dimension in dimensions.items()}
    for draw in range(MOST_DRAWS):
        asked = study_of(record, len(known) * MOST_DRAWS + draw).ask(distributions)
        values = {name: _decoded(dimensions[name], value) for name, value in asked.params.items()}
        if values not in known and values != usual:
            return values
    return None


def _distribution(dimension: Dimension) -> Any:
    from optuna import distributions

    if dimension.choices is not None:
        return distributions.CategoricalDistribution([json.dumps(choice) for choice in dimension.choices])
    low, high, step = dimension.low, dimension.high, dimension.step
    assert low is not None and high is not None
    if all(isinstance(value, int) for value in (low, high, step or 1)):
        return distributions.IntDistribution(int(low), int(high), log=dimension.log, step=int(step or 1))
    return distributions.FloatDistribution(low, high, log=dimension.log, step=step)


def _holds(distribution: Any, value: Any) -> bool:
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (ValueError, TypeError):
        return False


def _coded(dimension: Dimension, value: Any) -> Any:
    """A value as Optuna has it: it knows no lists."""
    return json.dumps(value) if dimension.choices is not None else value


def _decoded(dimension: Dimension, value: Any) -> Any:
    return json.loads(value) if dimension.choices is not None else value


def _best_of(other: "SweepRecord", sweep: Sweep) -> list[dict[str, Any]]:
    """The best configurations of another sweep; the settings that its trials share are shared by those of `sweep`."""
    best = [row for row in ranked(other) if row.values or not sweep.baseline]
    if not best:
        raise SweepInvalid(f"best_of: no trial of the sweep {other.sweep.name} has succeeded yet")
    return [{name: value for name, value in row.values.items() if name not in sweep.settings} for row in best]
