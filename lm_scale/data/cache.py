"""An entry of the cache is made once: by one process of all that want it, on local or shared disk.

The lock is a folder `<entry>.lock` beside the entry. It is claimed by renaming a filled folder to that name, which
succeeds for one process alone, and holds `<token>.json`: who makes it and how far it is. The maker rewrites that file
every few seconds; who waits takes the lock over when the maker is gone, or silent for `STALE_S` on the waiter's own
clock. It does so by renaming the lock to a name that its holder's token fixes, so that of several takers one wins and a
late one cannot take the winner's lock. The entry is written under a name of its own and renamed when it is complete:
whatever happens to the lock, no reader sees half an entry.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lm_scale import records
from lm_scale.arguments import UserError

BEAT_S = 3.0
STALE_S = 60.0
_POLL_S = 0.2
_LONGEST_POLL_S = 2.0  # hundreds of ranks may wait on one file system


@dataclass
class Status:
    """What the maker is doing (a word or two) and which share of it is done."""

    doing: str = "starting"
    share: float = 0.0


def make_once(
    entry: Path,
    make: Callable[[Path, Status], None],
    is_complete: Callable[[Path], bool],
    progress: IO[str] | None,
) -> None:
    """Return when `entry` is complete: made here by `make(folder, status)`, or by another process meanwhile.

    Args:
        make: fills an empty folder, which becomes the entry.
        is_complete: whether an entry can be read; one that is damaged is made anew.
        progress: where a progress bar is drawn, whoever makes the entry.

    Raises:
        UserError: from `make`, here or in the process that was waited for; or the folder cannot be written.
    """
    if is_complete(entry):
        return
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with _Bar(progress) as bar:
            _make_or_wait(_Lock(entry), make, is_complete, bar)
    except OSError as error:
        raise UserError(
            f"{entry.parent}: tokens cannot be cached there: {error.strerror or error}; free space or give --cache_dir"
        ) from error


def _make_or_wait(
    lock: _Lock, make: Callable[[Path, Status], None], is_complete: Callable[[Path], bool], bar: _Bar
) -> None:
    pause_s = _POLL_S
    while not is_complete(lock.entry):
        claimed = lock.claim()
        complete, message = is_complete(lock.entry), lock.failure_of_watched()
        if claimed and not complete and not message:
            _make(lock, make, is_complete, bar)
            continue
        if claimed:
            lock.release()
        if message and not complete:
            raise UserError(message)
        holder = lock.watch()
        if holder is not None:
            bar.show(Status(**holder["status"]))
        lock.take_over_if_stale()
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.2, _LONGEST_POLL_S)


def _make(lock: _Lock, make: Callable[[Path, Status], None], is_complete: Callable[[Path], bool], bar: _Bar) -> None:
    entry, status = lock.entry, Status()
    folder = lock.sibling("making", lock.token)
    failure: str | None = None
    try:
        with _Heartbeat(lock, status, bar):
            lock.remove_leftovers("making")
            if entry.exists() and not is_complete(entry):
                shutil.rmtree(entry)
            folder.mkdir()
            make(folder, status)
            for file in folder.rglob("*"):
                _flush_to_disk(file)
            if lock.is_mine():
                os.rename(folder, entry)
                lock.remove_leftovers("gone")
                lock.remove_leftovers("claim")
    except BaseException as error:
        if not lock.is_mine() and isinstance(error, OSError):
            return  # another process found this one silent, took over and cleared its folder: wait for that one
        failure = str(error) if isinstance(error, UserError) else None
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release(failure)


class _Lock:
    """The lock of one entry, seen from this process."""

    def __init__(self, entry: Path) -> None:
        self.entry = entry
        self.token = uuid.uuid4().hex
        self._path = entry.with_name(f"{entry.name}.lock")
        self._watched: tuple[str, int, float] | None = None  # holder's token, its file's time, when that was first seen
        self._holder: dict[str, Any] | None = None

    def sibling(self, role: str, token: str) -> Path:
        """A name beside the entry that belongs to one attempt: its `claim`, its folder in `making`, its `gone` lock."""
        return self.entry.with_name(f"{self.entry.name}.{role}-{token}")

    def claim(self) -> bool:
        """Try to become the maker."""
        if self._path.exists():
            return False
        self.token = uuid.uuid4().hex
        claim = self.sibling("claim", self.token)
        claim.mkdir()
        try:
            self._write(claim, Status())
            os.rename(claim, self._path)
            return True
        except OSError as error:  # the lock is there, or its releaser cleared this claim away as a leftover
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                return False
            raise
        finally:
            shutil.rmtree(claim, ignore_errors=True)

    def is_mine(self) -> bool:
        """Whether this process is still the maker."""
        return (self._path / f"{self.token}.json").exists()

    def beat(self, status: Status) -> None:
        """Say that this process lives; raises FileNotFoundError when the lock was taken away."""
        if not self.is_mine():
            raise FileNotFoundError(self._path)
        self._write(self._path, status)

    def watch(self) -> dict[str, Any] | None:
        """Who makes the entry (`process`, `status`); None where that cannot be seen just now."""
        try:
            file = next(self._path.glob("*.json"))
            changed = file.stat().st_mtime_ns
            self._holder = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, StopIteration, ValueError):
            return None
        if self._watched is None or self._watched[:2] != (file.stem, changed):
            self._watched = (file.stem, changed, time.monotonic())
        return self._holder

    def take_over_if_stale(self) -> None:
        """Remove the watched holder's lock when that process is gone or silent; `claim` then decides who is next."""
        if self._watched is None or self._holder is None:
            return
        token, _, seen = self._watched
        if time.monotonic() - seen < STALE_S and not _is_gone(self._holder["process"], self._path):
            return
        with contextlib.suppress(OSError):  # fails where another process was first: the name is then taken
            os.rename(self._path, self.sibling("gone", token))

    def failure_of_watched(self) -> str | None:
        """The user's mistake that ended the attempt this process waited for."""
        if self._watched is None:
            return None
        try:
            return (self.sibling("gone", self._watched[0]) / "error.txt").read_text(encoding="utf-8")
        except OSError:
            return None

    def release(self, failure: str | None = None) -> None:
        """Let others go on; a `failure` is kept for those who wait, until the next attempt succeeds."""
        if not self.is_mine():
            return
        gone = self.sibling("gone", self.token)
        with contextlib.suppress(OSError):  # a full disk: the others will find out for themselves
            if failure:
                (self._path / "error.txt").write_text(failure, encoding="utf-8")
        with contextlib.suppress(OSError):
            os.rename(self._path, gone)
        if not failure:
            shutil.rmtree(gone, ignore_errors=True)

    def remove_leftovers(self, role: str) -> None:
        """Remove what earlier attempts at this entry left."""
        for path in self.entry.parent.glob(f"{self.entry.name}.{role}-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _write(self, folder: Path, status: Status) -> None:
        process = {**records.process_identity([]), "pid_namespace": _pid_namespace()}
        new = folder / f".{self.token}"
        new.write_text(json.dumps({"process": process, "status": vars(status)}), encoding="utf-8")
        os.replace(new, folder / f"{self.token}.json")


class _Heartbeat:
    """Beats the lock from a thread while the entry is made, and draws the bar."""

    def __init__(self, lock: _Lock, status: Status, bar: _Bar) -> None:
        self._lock, self._status, self._bar = lock, status, bar
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._bar.show(self._status)

    def _run(self) -> None:
        next_beat = time.monotonic() + BEAT_S
        while not self._stop.wait(_POLL_S):
            self._bar.show(self._status)
            if time.monotonic() >= next_beat:
                with contextlib.suppress(OSError):  # full disk or lock lost: the maker finds out by itself
                    self._lock.beat(self._status)
                next_beat = time.monotonic() + BEAT_S


class _Bar:
    """A progress bar that appears when there is something to show."""

    def __init__(self, stream: IO[str] | None) -> None:
        self._stream = stream
        self._bar: Any = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, status: Status) -> None:
        """Bring the bar up to date."""
        if self._stream is None:
            return
        if self._bar is None or self._bar.desc.rstrip(": ") != status.doing:
            from tqdm import tqdm

            if self._bar is not None:
                self._bar.update(self._bar.total - self._bar.n)
                self._bar.close()
            layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
            self._bar = tqdm(total=1.0, desc=status.doing, file=self._stream, bar_format=layout)
        self._bar.update(max(min(status.share, 1.0) - self._bar.n, 0.0))


def _is_gone(process: dict[str, Any], lock: Path) -> bool:
    """Whether a process of this machine (and of this container) no longer exists; unknown for any other."""
    if process["host"] != socket.gethostname() or process["pid_namespace"] != _pid_namespace():
        return False
    return not records.is_alive(records.Run(lock, {"process": process}))


def _pid_namespace() -> str | None:
    """Names the container: a pid means nothing outside it."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _flush_to_disk(file: Path) -> None:
    """A full network disk may say so only here."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
