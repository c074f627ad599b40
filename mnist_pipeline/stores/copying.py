"""A store to another address, whole or as far as it is in use: each model verified, and resumable."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.datasets import INDEX, copy_images, digests_of
from mnist_pipeline.stores.decisions import DECIDED
from mnist_pipeline.stores.earlier import TEST_SETS, WAITING_DECISION
from mnist_pipeline.stores.errors import CorruptModel, ModelStoreError, ObjectChanged, ObjectMissing, UnknownModel
from mnist_pipeline.stores.exports import ONNX, ONNX_RECORD
from mnist_pipeline.stores.objects import DATA, EXPERIMENTS, OPEN_SWEEPS, prove_conditional_writes
from mnist_pipeline.stores.state import PRODUCTION, State, parse_state
from mnist_pipeline.stores.trail import READ_AT_A_TIME, key_of
from mnist_pipeline.stores.versions import DECISIONS, MANIFEST, WEIGHTS, complete_versions, entered_at


@dataclass
class Copied:
    """The work of a copy so far."""

    versions: list[str] = field(default_factory=list)
    """Versions that were copied or completed."""
    present: list[str] = field(default_factory=list)
    """Versions that were there already, and were verified."""
    damaged: dict[str, str] = field(default_factory=dict)
    """Versions that were left out since they are damaged at the source, and why."""
    decisions: int = 0


def copy(source: ModelStore, target: ModelStore, on_version: Callable[[str], None] = lambda name: None) -> Copied:
    """Copy versions, decisions, images, sweeps and the state; `on_version` is told each version before it is copied.

    The weights of each version are verified at the source and at the target, also of those that are there already. The
    state comes last, so that nothing is deployed at the target that is not there; where it changed meanwhile, what is
    new is copied too. Raises ModelStoreError if there is nothing to copy, if one store is or lies in the other, if the
    target has content or decisions of its own; CorruptModel if what is deployed is damaged or missing.
    """
    _require_apart(source, target)
    prove_conditional_writes(target)
    done = Copied()
    while True:
        state, (_, replaced) = _read(source, PRODUCTION), _read_with_token(target, PRODUCTION)
        _copy_versions(source, target, done, on_version)
        _copy_decisions(source, target, done)
        _copy_what_earlier_code_left(source, target)
        _copy_experiments(source, target)
        if _read(source, PRODUCTION) == state:
            break
    if state is None:
        if not (done.versions or done.present or done.damaged or any(source.list_objects(EXPERIMENTS))):
            raise ModelStoreError(f"there is nothing to copy in {source.address}")
        return done
    deployed = parse_state(state).deployed
    if deployed and deployed.version not in {*done.versions, *done.present}:
        why = done.damaged.get(deployed.version, f"{deployed.version} is not in {source.address}")
        raise CorruptModel(f"nothing is deployed at the target: {why}")
    try:
        if replaced is None:
            target._create(PRODUCTION, state)
        else:
            target._replace(PRODUCTION, state, replaced)
    except ObjectChanged:
        raise ModelStoreError(f"{target.address} was changed while it was copied to: copy again") from None
    return done


def _require_apart(source: ModelStore, target: ModelStore) -> None:
    one, other = (f"{store.address.rstrip('/')}/" for store in (source, target))
    if one.startswith(other) or other.startswith(one):
        raise ModelStoreError(f"{target.address} is, holds or lies in the store that is to be copied, {source.address}")


def _copy_versions(source: ModelStore, target: ModelStore, done: Copied, on_version: Callable[[str], None]) -> None:
    there = set(target.versions())
    for name in reversed(source.versions()):
        if name in done.versions or name in done.present or name in done.damaged:
            continue
        on_version(name)
        try:
            manifest, verified = source.verify(name)
        except UnknownModel:  # pruned since it was listed
            continue
        except CorruptModel as error:
            done.damaged[name] = str(error)
            continue
        _copy_files(source, target, name, verified)
        try:
            if target.verify(name)[0] != manifest:
                raise ModelStoreError(f"{target.address} has another {name} than {source.address}")
        except UnknownModel:  # pruned at the source in between
            target.delete_version(name)
            continue
        (done.present if name in there else done.versions).append(name)


def copy_in_use(source: ModelStore, target: ModelStore) -> tuple[State, list[str]]:
    """Copy the versions in use and the newest one, with their images, decisions and the state, to an empty store.

    Returns the state and the names of the versions. The rest of the audit trail stays where it is. Raises CorruptModel
    if what is deployed is damaged or missing; other versions that are damaged are left out.
    """
    state, found, copied = source.state(), source.version_files(), list[str]()
    versions = complete_versions(found)
    newest = max(versions, key=lambda name: entered_at(name, found[name]), default=None)
    for name in [name for name in versions if name in {*state.in_use, newest}]:
        try:
            copy_version(source, target, name)
        except (UnknownModel, CorruptModel) as error:  # pruned since it was listed, or damaged
            if state.deployed and name == state.deployed.version:
                raise CorruptModel(str(error)) from error
            continue
        for entry in [key.removeprefix(f"{name}/{DECIDED}") for key in source.list_objects(f"{name}/{DECIDED}")]:
            if (content := _read(source, key_of(entry))) is not None:
                _write(target, key_of(entry), content, immutable=True)
        for digest in digests_of(target.manifest(name).training.splits):
            with suppress(UnknownModel, CorruptModel):  # only to train the version once more
                copy_images(source, target, digest)
        copied.append(name)
    if state.deployed and state.deployed.version not in copied:
        raise CorruptModel(f"{state.deployed.version}, which is deployed, is not in {source.address}")
    if state.token is not None:
        target._create(PRODUCTION, state.model_copy(update={"pruning": ()}).to_bytes())
    return state, copied


def copy_version(source: ModelStore, target: ModelStore, name: str) -> None:
    """Copy a version with all that belongs to it. Raises UnknownModel, or CorruptModel if it is damaged."""
    _, verified = source.verify(name)
    _copy_files(source, target, name, verified)


def _copy_files(source: ModelStore, target: ModelStore, name: str, verified: dict[str, bytes]) -> None:
    models = tuple(f"{name}/{file}" for file in (WEIGHTS, ONNX, ONNX_RECORD))
    last = f"{name}/{MANIFEST}"  # as a save does
    for key in (*(key for key in source.list_objects(f"{name}/") if key != last), last):
        content = verified.get(key.removeprefix(f"{name}/")) or _read(source, key)
        if content is not None:
            _write(target, key, content, immutable=key in (*models, last))


def _copy_decisions(source: ModelStore, target: ModelStore, done: Copied) -> None:
    ours, theirs = list(source.list_objects(DECISIONS)), set(target.list_objects(DECISIONS))
    if own := theirs - set(ours):
        raise ModelStoreError(
            f"{target.address} has {len(own)} decisions of its own, such as {min(own)}: copy to an empty address"
        )

    def one(key: str) -> bool:
        content = _read(source, key)
        return content is not None and _write(target, key, content, immutable=True)

    with ThreadPoolExecutor(READ_AT_A_TIME) as threads:
        done.decisions += sum(threads.map(one, (key for key in ours if key not in theirs)))


def _copy_what_earlier_code_left(source: ModelStore, target: ModelStore) -> None:
    for key in (WAITING_DECISION, *source.list_objects(TEST_SETS)):
        if (content := _read(source, key)) is not None:
            _write(target, key, content, immutable=False)


def _copy_experiments(source: ModelStore, target: ModelStore) -> None:
    """Copy the images of trainings, and the sweeps with their versions; none of these is open at the target."""
    for prefix in (DATA, EXPERIMENTS):
        last = (f"/{MANIFEST}", f"/{INDEX}")  # without them the rest counts as not there
        for key in sorted(source.list_objects(prefix), key=lambda key: (key.endswith(last), key)):
            if key.startswith(OPEN_SWEEPS) or (content := _read(source, key)) is None:
                continue
            _write(target, key, content, immutable=key.endswith((f"/{WEIGHTS}", f"/{ONNX}", f"/{MANIFEST}")))


def _write(target: ModelStore, key: str, content: bytes, immutable: bool) -> bool:
    """Write an object; False if it is there already."""
    found, token = _read_with_token(target, key)
    if found == content:
        return False
    if immutable and found is not None:
        raise ModelStoreError(f"{target.address} has another {key}: copy to an empty address")
    if token is None:
        target._create(key, content)
    else:
        target._replace(key, content, token)
    return True


def _read(store: ModelStore, key: str) -> bytes | None:
    return _read_with_token(store, key)[0]


def _read_with_token(store: ModelStore, key: str) -> tuple[bytes | None, str | None]:
    try:
        return store.read_object(key)
    except ObjectMissing:
        return None, None
