"""The one walker of folders and buckets: which files count, and whether one changed.

It imports little, since the code server looks again and again.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from upath import UPath

from mnist_pipeline.files import cloud
from mnist_pipeline.files.storage import bucket_of, reading

if TYPE_CHECKING:
    from obstore import ObjectMeta

CHUNK_BYTES = 1 << 20

Links = Literal["inside", "anywhere", "never"]
"""The links in a folder that are followed: those to somewhere inside it, all, or none."""

HIDDEN = "hidden, or not finished: its name begins with a dot"


class Entry(NamedTuple):
    """A file that counts."""

    size: int
    """The size in bytes."""
    changed: datetime
    """The time of its last change, UTC."""
    tag: str | None
    """The text by which a bucket knows the content (ETag); None where only reading tells."""


class Walk(NamedTuple):
    """All that was found in a folder."""

    files: dict[str, Entry]
    """The files that count, by their names relative to the folder, in order."""
    left_out: dict[str, str]
    """The name of each other file or folder, and why it does not count."""


def walk(root: Path | UPath, links: Links = "inside") -> Walk:
    """Find the regular files below `root`; an absent folder equals an empty one.

    Names with a leading dot are left out (whoever writes a file gives it such a name until it is whole), and so are
    pipes, devices, and links that `links` does not allow. A folder is walked once, however many links lead to it.
    Raises StorageError where a bucket cannot be listed.
    """
    if isinstance(root, Path):
        found = _walk_local(root, links)
    elif root.protocol == cloud.MEMORY:
        found = _hidden_left_out(_in_memory(root))
    else:
        found = _hidden_left_out(_in_bucket(root))
    return Walk(dict(sorted(found.files.items())), dict(sorted(found.left_out.items())))


def entry(path: Path | UPath) -> Entry:
    """Return what is known about one file, without reading it. Raises OSError, also for what is no regular file."""
    if isinstance(path, Path):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is not a regular file")
        return Entry(status.st_size, _time(status.st_mtime), None)
    if path.protocol == cloud.MEMORY:
        return _entry_in_memory(path.fs.info(path.path))
    import obstore

    with cloud.sentences(str(path)):
        return _entry_in_bucket(obstore.head(*bucket_of(path)))


def fingerprint(found: Walk) -> str:
    """SHA-256 (hex) of names, sizes and times of change: without reading, whether the digest may be another one."""
    sha = hashlib.sha256()
    for name, entry in found.files.items():
        sha.update(f"{name}\0{entry.size}\0{entry.tag or entry.changed.timestamp()}\0".encode(errors="surrogateescape"))
    return sha.hexdigest()


def digest(root: Path | UPath, found: Walk) -> str:
    """SHA-256 (hex) of the names and contents of all files; in a bucket, of their names and ETags."""
    sha = hashlib.sha256()
    for name, entry in found.files.items():
        sha.update(f"{name}\0{entry.tag or _content(root / name)}\0".encode(errors="surrogateescape"))
    return sha.hexdigest()


def printable(name: str) -> str:
    r"""Return a name as text that can be stored anywhere: bytes that are not UTF-8 are written as `\xff`."""
    return os.fsencode(name).decode(errors="backslashreplace")


def update(sha: "hashlib._Hash", path: Path | UPath) -> None:
    """Take a file's content into a digest, in constant memory. Raises OSError."""
    with reading(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            sha.update(chunk)


def _content(path: Path | UPath) -> str:
    sha = hashlib.sha256()
    try:
        update(sha, path)
    except OSError:  # those who read the file name it
        return "unreadable"
    return sha.hexdigest()


def _walk_local(root: Path, links: Links) -> Walk:
    found = Walk({}, {})
    walked: set[tuple[int, int]] = set()
    folders, linked_folders = [(root, "")], list[tuple[Path, str]]()
    real_root = Path(os.path.realpath(root))
    while folders or linked_folders:
        folder, prefix = (folders or linked_folders).pop(0)  # links last: a folder has its own name
        try:
            status = folder.stat()
            entries = list(os.scandir(folder))
        except FileNotFoundError:  # it went away, or was never there
            continue
        except OSError as error:
            found.left_out[prefix.rstrip("/") or "."] = f"cannot be listed: {error.strerror}"
            continue
        if (status.st_dev, status.st_ino) in walked:
            found.left_out[prefix.rstrip("/")] = "a link to a folder that is walked anyway"
            continue
        walked.add((status.st_dev, status.st_ino))
        for entry in entries:
            name = prefix + entry.name
            kind, why = _kind(entry, real_root, links)
            if why:
                found.left_out[name] = why
            elif kind and stat.S_ISDIR(kind.st_mode):
                (linked_folders if entry.is_symlink() else folders).append((folder / entry.name, f"{name}/"))
            elif kind:
                found.files[name] = Entry(kind.st_size, _time(kind.st_mtime), None)
    return found


def _time(seconds: float) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):  # a clock or a tool set it beyond the year 9999
        return datetime.max.replace(tzinfo=UTC)


def _kind(entry: "os.DirEntry[str]", root: Path, links: Links) -> tuple[os.stat_result | None, str | None]:
    """The status of an entry, or the reason why it does not count; neither if it went away."""
    if entry.name.startswith("."):
        return None, HIDDEN
    try:
        if entry.is_symlink() and (why := _not_followed(Path(entry.path).resolve(strict=True), root, links)):
            return None, why
        status = entry.stat()
    except (FileNotFoundError, RuntimeError):  # RuntimeError: links that go round in a circle
        return None, "a link to nothing" if entry.is_symlink() else None
    except OSError as error:
        return None, f"cannot be looked at: {error.strerror}"
    regular = stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)
    return (status, None) if regular else (None, "not a regular file")


def _not_followed(target: Path, root: Path, links: Links) -> str | None:
    if links == "never":
        return "a link, and none is followed"
    inside = links == "anywhere" or target.is_relative_to(root)
    return None if inside else "a link to somewhere outside the folder"


def _in_memory(root: UPath) -> Iterator[tuple[str, Entry]]:
    prefix = root.path.rstrip("/") + "/"
    for path, details in root.fs.find(root.path, detail=True).items():
        yield path.removeprefix(prefix), _entry_in_memory(details)


def _entry_in_memory(details: dict[str, Any]) -> Entry:
    created = details["created"]  # a time, or seconds: fsspec's `info` and `find` differ
    return Entry(
        details["size"], created if isinstance(created, datetime) else datetime.fromtimestamp(created, UTC), None
    )


def _in_bucket(root: UPath) -> Iterator[tuple[str, Entry]]:
    import obstore

    bucket, key = bucket_of(root)
    prefix = f"{key.rstrip('/')}/" if key else ""
    with cloud.sentences(str(root)):
        for page in obstore.list(bucket, prefix or None, chunk_size=cloud.PAGE):
            for found in page:
                if found["path"] != key:  # an empty object that a console made for the folder itself
                    yield found["path"].removeprefix(prefix), _entry_in_bucket(found)


def _entry_in_bucket(details: "ObjectMeta") -> Entry:
    return Entry(details["size"], details["last_modified"], details["e_tag"])


def _hidden_left_out(entries: Iterator[tuple[str, Entry]]) -> Walk:
    found = Walk({}, {})
    for name, entry in entries:
        if any(part.startswith(".") for part in name.split("/")):
            found.left_out[name] = HIDDEN
        else:
            found.files[name] = entry
    # Consoles of clouds make an empty object for a folder.
    folders = {name.rpartition("/")[0] for name in found.files}
    return Walk({n: e for n, e in found.files.items() if e.size or n not in folders}, found.left_out)
