"""Who is at work on a file or folder: locks, and the names of temporary files, by which the leftovers of the dead are
known.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from audiovae.errors import PathError

_FOLDER_LOCK = ".audiovae.lock"
_SECONDS_TO_SIGN = 10.0  # a lock without a name is just being written, or its holder died over it
_TEMPORARY = re.compile(r"\.([0-9a-f]{8})\.([0-9a-f]{8})\.(\d+)\.(\d+)\.\d+\.(\d+)\.partial(?:\.\w*)?")
_LOCK = re.compile(r"\.[0-9a-f]{16}\.lock")
_LONGEST_SUFFIX = 16
_count = itertools.count()
_swept: set[tuple[int, Path]] = set()


class LockedError(PathError):
    """Another process is at work on a file or folder."""


@dataclass(frozen=True)
class Owner:
    """A process, told from every other one on any machine.

    Attributes:
        machine: hash of its name and identity.
        boot: hash of the machine's start that it belongs to.
        space: number of the container in which `process` counts; 0 where that is not known.
        start: of the process, in ticks since the boot; 0 where that is not known.
        process: its number.
    """

    machine: str
    boot: str
    space: int
    start: int
    process: int

    @classmethod
    def me(cls) -> Owner:
        return _owner(os.getpid())

    @property
    def is_dead(self) -> bool:
        """Is it known to have ended? Nothing is known of other machines and containers."""
        me = Owner.me()
        if self.machine != me.machine:
            return False
        if self.boot != me.boot:
            return True
        return self.space == me.space and self.start != _start(self.process)


@functools.cache
def _owner(process: int) -> Owner:
    def digest(*paths: str, name: str = "") -> str:
        return hashlib.sha256("\n".join([name, *map(_content, paths)]).encode()).hexdigest()[:8]

    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        space = 0
    machine = digest("/etc/machine-id", name=socket.gethostname())
    return Owner(machine, digest("/proc/sys/kernel/random/boot_id"), space, _start(process) or 0, process)


def _content(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _start(process: int) -> int | None:
    """When a process began; None where there is none."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
        return None if state in "ZX" else int(fields[18])
    except (OSError, ValueError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return 0


def temporary_path(path: Path) -> Path:
    """A name of this process alone in the folder of `path`, short whatever the name, with the same suffix."""
    me = Owner.me()
    suffix = path.suffix if len(path.suffix) <= _LONGEST_SUFFIX else ""  # libraries choose the format by it
    name = f".{me.machine}.{me.boot}.{me.space}.{me.start}.{next(_count)}.{me.process}.partial{suffix}"
    return path.with_name(name)


def sweep(folder: Path, again: bool = False) -> None:
    """Take away what dead processes left in a folder: temporary files and folders, and locks.

    Done once a process and folder, unless `again`.
    """
    key = os.getpid(), folder
    if key in _swept and not again:
        return
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if parts := _TEMPORARY.fullmatch(entry.name):
                machine, boot, *numbers = parts.groups()
                if Owner(machine, boot, *map(int, numbers)).is_dead:
                    with contextlib.suppress(OSError):  # another user's
                        shutil.rmtree(entry) if entry.is_dir(follow_symlinks=False) else os.unlink(entry)
            elif _LOCK.fullmatch(entry.name):
                with contextlib.suppress(LockedError):
                    _take(Path(entry.path))
                    _release(Path(entry.path))
        _swept.add(key)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Within the block no other process can lock this folder, which is created.

    Raises:
        LockedError: another process has it, and is alive as far as is known here.
        PathError: the folder cannot be written.
    """
    with _locked(folder / _FOLDER_LOCK, folder, folder_stays=True):
        yield


@contextmanager
def locked_file(file: Path) -> Iterator[None]:
    """The same for a file to be written; its folder is created, and goes again if it is empty at the end, unless a
    signal ended it.
    """
    with _locked(_lock_of(file), file, folder_stays=False):
        yield


def break_lock(path: Path) -> None:
    """Take the lock of a folder or file from a process of another machine or container, which is known to be gone."""
    for lock in (path / _FOLDER_LOCK, _lock_of(path)):
        holder = _holder(lock)
        me = Owner.me()
        if holder is not None and (holder.machine != me.machine or holder.space != me.space):
            lock.unlink(missing_ok=True)


def _lock_of(file: Path) -> Path:
    return file.with_name(f".{hashlib.sha256(os.fsencode(file.name)).hexdigest()[:16]}.lock")


@contextmanager
def _locked(lock: Path, what: Path, folder_stays: bool) -> Iterator[None]:
    created = [folder for folder in (lock.parent, *lock.parent.parents) if not folder.exists()]
    stays = True  # where a signal ends it
    is_mine = True
    try:
        try:
            _taken(lock, what)
        except Exception:
            is_mine = False
            raise
        yield
        stays = folder_stays
    except Exception:
        stays = not is_mine
        raise
    finally:
        if is_mine:
            _release(lock)
        with contextlib.suppress(OSError):
            for folder in [] if stays else created:
                folder.rmdir()


def _taken(lock: Path, what: Path) -> None:
    try:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            sweep(lock.parent)
            _take(lock)
        except FileNotFoundError:  # another process has just taken away the folder that it had created in vain
            lock.parent.mkdir(parents=True, exist_ok=True)
            _take(lock)
    except LockedError as error:
        raise LockedError(what, error.reason) from None
    except OSError as error:
        raise PathError(
            what, f"cannot be written ({error.strerror or error}); check the folder and the free space"
        ) from error


def _take(lock: Path) -> None:
    """Write this process's name into a lock file.

    Processes of one machine take turns at reading and writing it, so that of two that find it left by a dead one, only
    one gets it.

    Raises:
        LockedError: it holds the name of a process that is not known to be dead.
        OSError: it cannot be written.
    """
    while True:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor, is_new = os.open(lock, flags | os.O_CREAT | os.O_EXCL, 0o644), True
        except FileExistsError:
            try:
                descriptor, is_new = os.open(lock, flags), False
            except FileNotFoundError:
                continue
        try:
            with contextlib.suppress(OSError):  # a file system without it
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            status = os.fstat(descriptor)
            try:
                is_same = os.stat(lock, follow_symlinks=False).st_ino == status.st_ino
            except FileNotFoundError:
                is_same = False
            if not is_same:
                continue  # released meanwhile
            content = os.pread(descriptor, 4096, 0)
            if not is_new and not content and abs(time.time() - status.st_mtime) < _SECONDS_TO_SIGN:
                time.sleep(0.05)
                continue
            holder = _parsed(content)
            if holder is not None and not holder.is_dead:
                raise LockedError(lock, _busy(content))
            mine = {"host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S"), **asdict(Owner.me())}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(mine).encode(), 0)
            os.fsync(descriptor)
            return
        except BaseException:  # a signal, too
            if is_new:
                lock.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)


def _release(lock: Path) -> None:
    if _holder(lock) == Owner.me():
        with contextlib.suppress(OSError):
            lock.unlink()


def _holder(lock: Path) -> Owner | None:
    try:
        return _parsed(lock.read_bytes())
    except OSError:
        return None


def _parsed(content: bytes) -> Owner | None:
    try:
        fields = json.loads(content)
        return Owner(*(kind(fields[name]) for name, kind in _KINDS.items()))
    except (ValueError, TypeError, KeyError):
        return None


_KINDS = {"machine": str, "boot": str, "space": int, "start": int, "process": int}


def _busy(content: bytes) -> str:
    fields = json.loads(content)
    return (
        f"process {fields['process']} on {fields.get('host')} has been at work on it since {fields.get('since')}; wait "
        "for it, or give --break-lock if it is gone with its machine"
    )
