"""Files that are there whole or not at all: one written in a step, or a folder's worth of them (stdlib only)."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from export.errors import ExportError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the file at `path`, or the one it links to, by `data` in one step.

    A device or a pipe is written to: renaming a file over it would, for root and /dev/null, be the end of /dev/null.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    path = Path(os.path.realpath(path))  # a rename would replace the link, /dev/stdout say, not what it points to
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def try_folder(folder: Path) -> None:
    """Raise the OSError that a new file in `folder` would meet, before minutes are spent on what belongs there."""
    with tempfile.TemporaryFile(dir=folder):
        pass


@contextmanager
def room(out: Path) -> Iterator[Path]:
    """A folder beside `out` that is gone afterwards, to make a bundle in; a full disk is said in words.

    Raises
    ------
    ExportError
        Nothing can be written there; or the disk is full, or a quota or the largest size of a file was reached.
    """
    try:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            try_folder(out if out.exists() else out.parent)
        except OSError as exc:
            if exc.errno in _FULL:
                raise
            raise ExportError(
                f"{out} cannot be written ({exc.strerror}); give --out a folder that you may write to"
            ) from exc
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
            yield Path(folder)
    except OSError as exc:
        if exc.errno not in _FULL:
            raise
        raise ExportError(
            f"no room for the bundle {out} ({exc.strerror}); what was there is untouched: make room, or choose another"
            " --out"
        ) from exc


def move(work: Path, out: Path, *, last: str, without: Collection[str] = ()) -> None:
    """Put the files of `work` into `out`, the one named `last` at the end; then those named in `without` go.

    Ctrl-C waits until all of that is done.
    """
    with _uninterrupted():
        out.mkdir(exist_ok=True)
        for path in sorted(work.iterdir(), key=lambda path: path.name == last):
            path.replace(out / path.name)
        for name in without:
            (out / name).unlink(missing_ok=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the block is done."""
    pressed: list[int] = []
    try:
        before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    except ValueError:  # not the main thread, so Ctrl-C does not arrive here
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
