"""What stands between a verb and the file system: it counts every call that can leave a trace, fails or kills the process at the Nth, and keeps a trace.

Calls on files outside *root* are not its business. It works by replacing the names in `os`, `io`, `builtins` and the two C calls that the product makes
through ctypes, so it needs nothing of the product, and the product knows nothing of it.
"""

from __future__ import annotations

import builtins
import ctypes
import errno
import io
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self

from torture.loss import Loss

CHANGES = frozenset(
    ["open", "write", "rename", "link", "symlink", "unlink", "mkdir", "rmdir", "truncate", "allocate", "fsync", "sync", "utime"]
)  # what a kill can fall before or after
REFUSABLE = {
    "EIO": frozenset(["open", "read", "write", "fsync", "sync", "rename"]),
    "ENOSPC": frozenset(["open", "write", "mkdir", "allocate", "rename", "link", "symlink"]),
    "EROFS": CHANGES - {"fsync", "sync"},
}
KILLS = ("kill before", "kill after", "half written", "power loss")


@dataclass(frozen=True)
class Plan:
    """What is to happen. *at* counts from 1 among the calls that *what* can fall on; 0 only counts. *lasting*: every later call fails too."""

    root: str
    what: str = ""
    at: int = 0
    lasting: bool = False
    seed: int = 0
    clock_s: float = 0.0
    boot: str = ""
    event: tuple[str, ...] = ()
    """For what = "event": ("unmount", mount point), ("read-only", mount point) or ("rot", path, offset)."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        return cls(**{**record, "event": tuple(record.get("event", ()))})


class Shim:
    """One process's faults. `arm` replaces the names; there is no way back: the process is a child that ends soon."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.count = 0
        self.seen: Counter[str] = Counter()
        """Calls by kind, whether *what* can fall on them or not."""
        self.hit = ""
        self.trace: list[tuple[str, ...]] = []
        self.lock = threading.RLock()
        self.loss = Loss(plan.seed)
        self.kinds = REFUSABLE.get(plan.what, CHANGES)
        self.real = {name: getattr(os, name) for name in _PATHS | _FDS if hasattr(os, name)}

    # --- where a call goes

    def _place(self, path: Any, dir_fd: int | None = None) -> str:
        """The real path of *path*'s name; "" where that is not below the root."""
        if isinstance(path, int):
            return self._of_fd(path)
        text = os.fsdecode(path)
        if dir_fd is not None:
            text = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), text)
        folder, name = os.path.split(os.path.abspath(text))
        text = os.path.join(os.path.realpath(folder), name)
        return text if text.startswith(self.plan.root + "/") else ""

    def _of_fd(self, fd: int) -> str:
        try:
            text = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            return ""
        return text if text.startswith(self.plan.root + "/") else ""

    # --- the faults

    def call(self, kind: str, places: tuple[str, ...], do: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        """Do it, unless this is the call at which something is to happen."""
        plan = self.plan
        with self.lock:
            self.seen[kind] += 1
            if kind not in self.kinds:
                return do()
            self.count += 1
            here = bool(plan.at) and (self.count == plan.at or (plan.lasting and self.count > plan.at))
            if here:
                self.hit = self.hit or f"{kind} {places[-1].removeprefix(plan.root)}"
                self._happen(kind, do, half)
            return do()

    def _happen(self, kind: str, do: Callable[[], Any], half: Callable[[], Any] | None) -> None:
        what = self.plan.what
        if what in REFUSABLE:
            number = getattr(errno, what)
            raise OSError(number, os.strerror(number))
        if what == "half written" and half is not None:
            half()
        elif what == "kill after":
            do()
        elif what == "power loss":
            self.loss.happen()
        if what in KILLS:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "event":
            happen(self.plan.event)

    # --- the names

    def arm(self) -> None:
        """Replace the names. Nothing of the product may be running yet."""
        for name, kind in _PATHS_KINDS.items():
            setattr(os, name, self._by_path(name, kind))
        for name, kind in _FDS_KINDS.items():
            if name in self.real:
                setattr(os, name, self._by_fd(name, kind))
        os.open = self._open  # type: ignore[assignment]
        opener = self._stream_opener()
        import _io

        builtins.open = io.open = _io.open = opener  # type: ignore[assignment, attr-defined]
        self._c_calls()
        if self.plan.clock_s:
            move_clock(self.plan.clock_s)
        if self.plan.boot:
            from steelyard import staging

            staging.boot_id = lambda: self.plan.boot

    def _note(self, kind: str, *facts: str) -> None:
        self.trace.append((kind, *facts))

    def _by_path(self, name: str, kind: str) -> Callable[..., Any]:
        real = self.real[name]

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            two = name in {"rename", "replace", "link"}
            if two:
                places = (
                    self._place(args[0], kwargs.get("src_dir_fd")),
                    self._place(args[1], kwargs.get("dst_dir_fd")),
                )
            else:
                # symlink's first argument is what it points at, and no place.
                places = (self._place(args[1 if name == "symlink" else 0], kwargs.get("dir_fd")),)
            if not places[-1]:
                return real(*args, **kwargs)

            def do() -> Any:
                inode = _inode(places[0])
                undo = self.loss.before(kind, places) if self.plan.what == "power loss" else None
                done = real(*args, **kwargs)
                if undo is not None:
                    self.loss.did(undo)
                self._note(kind, *places, inode)
                return done

            return self.call(kind, places, do)

        return wrapped

    def _by_fd(self, name: str, kind: str) -> Callable[..., Any]:
        real = self.real[name]

        def wrapped(fd: Any, *args: Any, **kwargs: Any) -> Any:
            place = self._place(fd) if not isinstance(fd, int) else self._of_fd(fd)
            if not place:
                return real(fd, *args, **kwargs)

            def do() -> Any:
                losing = self.plan.what == "power loss" and isinstance(fd, int)
                if losing and kind in {"write", "truncate"}:
                    self.loss.writing(fd, name, args)
                done = real(fd, *args, **kwargs)
                if losing and kind == "fsync":
                    self.loss.synced(fd, place)
                if kind in {"write", "truncate", "fsync"}:
                    self._note(kind, place, _inode_of_fd(fd) if isinstance(fd, int) else _inode(place))
                return done

            def half() -> None:
                if kind == "write" and args:
                    data = memoryview(args[0]).cast("B")
                    real(fd, data[: len(data) // 2], *args[1:])

            return self.call(kind, (place,), do, half)

        return wrapped

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        real = self.real["open"]
        if not flags & os.O_CREAT or isinstance(path, int) or not (place := self._place(path, dir_fd)):
            return int(real(path, flags, mode, dir_fd=dir_fd))

        def do() -> int:
            fresh = not os.path.lexists(place)
            undo = self.loss.before("open", (place,)) if fresh and self.plan.what == "power loss" else None
            fd = int(real(path, flags, mode, dir_fd=dir_fd))
            if undo is not None:
                self.loss.did(undo)
            if flags & os.O_TRUNC and not fresh:
                self._note("write", place, _inode_of_fd(fd))
            return fd

        return int(self.call("open", (place,), do))

    def _stream_opener(self) -> Callable[..., Any]:
        """`open` for writing, with every flush of its buffer going through os.write; reading is left alone."""
        real = io.open

        class Raw(io.FileIO):
            def write(self, data: Any, /) -> int:
                return os.write(self.fileno(), data)

        def through_us(path: Any, flags: int) -> int:
            return os.open(path, flags | os.O_CLOEXEC, 0o666)

        def opener(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
            place = self._of_fd(file) if isinstance(file, int) else (self._place(file) if isinstance(file, str | os.PathLike) else "")
            if not place or not set(mode) & set("wax+") or kwargs.get("opener") or args:
                return real(file, mode, buffering, *args, **kwargs)
            plain = mode.replace("b", "").replace("t", "")
            closefd = kwargs.pop("closefd", True)
            raw = Raw(file, plain, closefd=closefd, opener=None if isinstance(file, int) else through_us)
            if buffering == 0:
                return raw
            stream: Any = io.BufferedRandom(raw) if "+" in plain else io.BufferedWriter(raw)
            return stream if "b" in mode else io.TextIOWrapper(stream, **kwargs)

        return opener

    def _c_calls(self) -> None:
        from steelyard import disk

        allocate, make = disk._LIBC.fallocate, ctypes.CDLL

        def fallocate(fd: int, mode: int, start: Any, length: Any) -> int:
            place = self._of_fd(fd)
            try:
                return (
                    int(self.call("allocate", (place,), lambda: allocate(fd, mode, start, length)))
                    if place
                    else int(allocate(fd, mode, start, length))
                )
            except OSError as error:
                ctypes.set_errno(error.errno or 0)
                return -1

        def syncfs(library: Any) -> Callable[[int], int]:
            def wrapped(fd: int) -> int:
                place = self._of_fd(fd)

                def do() -> int:
                    done = int(library.syncfs(fd))
                    self.loss.synced_all()
                    self._note("sync", place)
                    return done

                try:
                    return int(self.call("sync", (place,), do)) if place else int(library.syncfs(fd))
                except OSError as error:
                    ctypes.set_errno(error.errno or 0)
                    return -1

            return wrapped

        disk._LIBC = _Library(disk._LIBC, fallocate=fallocate)  # type: ignore[assignment]

        def library(*args: Any, **kwargs: Any) -> Any:
            made = make(*args, **kwargs)
            return _Library(made, syncfs=syncfs(made)) if args and args[0] is None else made

        ctypes.CDLL = library  # type: ignore[assignment, misc]


_PATHS_KINDS = {
    "rename": "rename",
    "replace": "rename",
    "link": "link",
    "symlink": "symlink",
    "unlink": "unlink",
    "remove": "unlink",
    "mkdir": "mkdir",
    "rmdir": "rmdir",
}
_FDS_KINDS = {
    "write": "write",
    "pwrite": "write",
    "pwritev": "write",
    "writev": "write",
    "truncate": "truncate",
    "ftruncate": "truncate",
    "fsync": "fsync",
    "fdatasync": "fsync",
    "utime": "utime",
    "read": "read",
    "pread": "read",
    "preadv": "read",
    "readinto": "read",
    "copy_file_range": "write",
    "sendfile": "write",
}
_PATHS, _FDS = set(_PATHS_KINDS) | {"open"}, set(_FDS_KINDS)


class _Library:
    """A C library of which some calls are ours."""

    def __init__(self, library: Any, **ours: Any) -> None:
        self.__dict__.update(ours, _library=library)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)


def _inode(path: str) -> str:
    try:
        seen = os.lstat(path)
    except OSError:
        return ""
    return f"{seen.st_dev}:{seen.st_ino}"


def _inode_of_fd(fd: int) -> str:
    seen = os.fstat(fd)
    return f"{seen.st_dev}:{seen.st_ino}"


def happen(event: tuple[str, ...]) -> None:
    """What befalls a drive or a file while the verb is at work."""
    libc = ctypes.CDLL(None, use_errno=True)
    if event[0] == "unmount":
        libc.umount2(event[1].encode(), 2)  # MNT_DETACH
    elif event[0] == "read-only":
        # Refused (EBUSY) while a file is open for writing, as in life.
        libc.mount(None, event[1].encode(), None, 32 | 1, None)  # MS_REMOUNT | MS_RDONLY
    elif event[0] == "rot":
        rot(Path(event[1]), int(event[2]))


def rot(path: Path, offset: int, bits: int = 1) -> None:
    """Flip bits of a file, and set its times back: what decay below the file system looks like to a program."""
    try:
        seen = path.stat()
        with path.open("r+b", buffering=0) as file:
            file.seek(offset)
            byte = file.read(1)
            if byte:
                file.seek(offset)
                file.write(bytes([byte[0] ^ bits]))
        os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    except OSError:
        return


def move_clock(by_s: float) -> None:
    """The wall clock jumps; monotonic time does not."""
    import time

    real = time.time
    time.time = lambda: real() + by_s

    class Moved(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(seconds=by_s)

    for name, module in list(sys.modules.items()):
        if name.startswith("steelyard") and getattr(module, "datetime", None) is datetime:
            module.datetime = Moved  # type: ignore[attr-defined]
