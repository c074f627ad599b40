"""A whole store to another address: each model verified, and resumable."""

from collections.abc import Callable
from dataclasses import dataclass, field

from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.errors import CorruptModel, ModelStoreError, ObjectChanged, ObjectMissing, UnknownModel
from mnist_pipeline.stores.objects import PROOFS, prove_conditional_writes
from mnist_pipeline.stores.state import PRODUCTION, parse_state
from mnist_pipeline.stores.trail import entry_name, read_entry
from mnist_pipeline.stores.versions import DECISIONS, MANIFEST, VERSION_NAME, WEIGHTS


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
    """Copy all versions, decisions and the state; `on_version` is told each version before it is copied.

    The weights of each version are verified at the source and at the target, also of those that are there already. The
    state comes last, so that nothing is deployed at the target that is not there; where it changed meanwhile, what is
    new is copied too. Raises ModelStoreError if the target is the source, or has content or a deployment of its own,
    and CorruptModel if what is deployed is damaged.
    """
    if source.address == target.address:
        raise ModelStoreError(f"{target.address} is the store that is to be copied")
    prove_conditional_writes(target)
    done = Copied()
    while True:
        state, (_, replaced) = _read(source, PRODUCTION), _read_with_token(target, PRODUCTION)
        _require_no_other_deployment(source, target)
        _copy_versions(source, target, done, on_version)
        _copy_the_rest(source, target, done)
        if _read(source, PRODUCTION) == state:
            break
    if state is None:
        return done
    deployed = parse_state(state)[0].deployed
    if deployed and deployed.version in done.damaged:
        raise CorruptModel(f"nothing is deployed at the target: {done.damaged[deployed.version]}")
    try:
        if replaced is None:
            target.create_object(PRODUCTION, state)
        else:
            target.replace_object(PRODUCTION, state, replaced)
    except ObjectChanged:
        raise ModelStoreError(f"{target.address} was changed while it was copied to: copy again") from None
    return done


def _copy_versions(source: ModelStore, target: ModelStore, done: Copied, on_version: Callable[[str], None]) -> None:
    there = set(target.versions())
    for name in reversed(source.versions()):
        if name in done.versions or name in done.present or name in done.damaged:
            continue
        on_version(name)
        try:
            manifest, weights = source.load(name)
        except UnknownModel:  # pruned since it was listed
            continue
        except CorruptModel as error:
            done.damaged[name] = str(error)
            continue
        last = (f"{name}/{WEIGHTS}", f"{name}/{MANIFEST}")  # the manifest last of all, as a save does
        for key in (*(key for key in source.list_objects(f"{name}/") if key not in last), *last):
            content = weights if key == last[0] else _read(source, key)
            if content is not None:
                _write(target, key, content, immutable=key in last)
        if target.load(name)[0] != manifest:
            raise ModelStoreError(f"{target.address} has another {name} than {source.address}")
        (done.present if name in there else done.versions).append(name)


def _copy_the_rest(source: ModelStore, target: ModelStore, done: Copied) -> None:
    """The audit trail, and what earlier code kept beside it."""
    there = set(target.list_objects(DECISIONS))
    for key in source.list_objects():
        is_decision = key.startswith(DECISIONS)
        if VERSION_NAME.fullmatch(key.partition("/")[0]) or key == PRODUCTION or key.startswith(PROOFS) or key in there:
            continue
        if (content := _read(source, key)) is not None:
            done.decisions += _write(target, key, content, immutable=is_decision) and is_decision


def _write(target: ModelStore, key: str, content: bytes, immutable: bool) -> bool:
    """Write an object; False if it is there already."""
    found, token = _read_with_token(target, key)
    if found == content:
        return False
    if immutable and found is not None:
        raise ModelStoreError(f"{target.address} has another {key}: copy to an empty address")
    if token is None:
        target.create_object(key, content)
    else:
        target.replace_object(key, content, token)
    return True


def _require_no_other_deployment(source: ModelStore, target: ModelStore) -> None:
    theirs = target.production()
    if theirs is None or theirs == source.production() or read_entry(source, entry_name(theirs)) is not None:
        return
    raise ModelStoreError(
        f"{theirs.version} is deployed at {target.address}, and {source.address} never deployed it: copy to an empty "
        "address"
    )


def _read(store: ModelStore, key: str) -> bytes | None:
    return _read_with_token(store, key)[0]


def _read_with_token(store: ModelStore, key: str) -> tuple[bytes | None, str | None]:
    try:
        return store.read_object(key)
    except ObjectMissing:
        return None, None
