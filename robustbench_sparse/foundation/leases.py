"""Leases: what one process of any host holds in a folder that several hosts write.

A lock of the system (``locks``) lives in one machine; a lease lives in the folder. It is a folder itself,
``.leases/<name>/<holder>/``, and the one folder in ``.leases/<name>/`` says by its name who holds it: ``free``, or
host, process and a random token. Every change of hands is one rename, which succeeds for one process and fails for any
other:

* take it: ``free`` → mine; the first time the whole, prepared aside, → ``.leases/<name>``
* give it back: mine → ``free``
* take it over: the other's → mine, then its *place* is removed, and only then does the work begin

In it are ``beat``, which a thread of the holder renews, and the holder's place, a folder named by the token: what it
changes goes through there (``fences``). A lease has expired when whoever waits for it has seen no new beat for so many
seconds of its own clock; no two clocks are compared. A process of this machine that has ended has lost its leases at
once.

A holder that was only asleep, or cut off, does not know that it was taken over; it need not. Its place is gone, so
every change that it still tries fails, and giving the lease back fails, too. Two holders may for a while *work*, never
publish.

What is assumed of the file system, as NFS (version 3 and later) and the file systems of clusters give it: renaming is
atomic, fails for a source that is gone and for a target folder that is not empty; in a folder that was removed nothing
can be made or renamed any more; who opens a file sees what was written before it was closed (close-to-open, so no mount
option ``nocto``). Nothing is assumed of clocks, of locks, or of how long names are cached: a host that still sees an
old name waits longer, or makes again what is there already.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.fences import LeaseLost, fenced
from robustbench_sparse.foundation.processes import has_ended, known_as

LEASES = ".leases"
ABOUT = "about.json"  # that leases are in use here, and after how many seconds they expire
EXPIRY_S = 60.0
FREE, BEAT = "free", "beat"
_BEATS = 8  # in the time after which a lease expires
_POLLS = 20  # looks in the same time
_TRIES, _PAUSE_S = 200, 0.05  # to empty a folder that another process may still be writing to


def start(folder: Path, expiry: float = EXPIRY_S) -> bool:
    """Let everything that works in a folder take leases from now on; whether that is new here."""
    about = folder / LEASES / ABOUT
    if about.is_file():
        return False
    about.parent.mkdir(parents=True, exist_ok=True)
    aside = about.with_name(f".new.{uuid.uuid4().hex}")
    aside.write_text(json.dumps({"expiry": expiry}))
    aside.replace(about)
    return True


def expiry_of(folder: Path) -> float | None:
    """Seconds after which a folder's leases expire; None where no leases are in use.

    Raises:
        UserError: the file that says so is damaged.
    """
    about = folder / LEASES / ABOUT
    try:
        expiry = float(json.loads(about.read_text())["expiry"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{about}: cannot be read: {one_line(e)}") from None
    return expiry


class Lease:
    """One lease of a folder.

    Args:
        folder: the one that is shared.
        name: of what is held; a file's name.
        expiry: seconds.
    """

    def __init__(self, folder: Path, name: str, expiry: float) -> None:
        self.folder, self.name, self.expiry = folder, name, expiry
        self.root = folder / LEASES / name
        token = uuid.uuid4().hex
        self.mine = self.root / known_as(os.getpid(), token)
        self._entering = self.mine.with_name(f"{self.mine.name}~")
        self.place = self.mine / token
        self._count = 0

    def take(self) -> bool:
        """Take it if it is free, or its holder has ended; whether it is this process's now."""
        for _ in range(3):  # a folder that is just being renamed may be seen under no name
            if self._claimed(FREE) or self._founded():
                return self._begun()
            holder = self.holder()
            if holder and has_ended(holder):
                if self._claimed(holder):
                    return self._begun()
            elif holder != FREE:
                return False
        return False

    def wait(self) -> None:
        """Take it as soon as it is free or has expired."""
        seen, since = ("", b""), time.monotonic()
        while not self.take():
            time.sleep(self.expiry / _POLLS)
            holder = self.holder() or FREE
            now = holder, self._beat_of(holder)
            if now != seen or holder == FREE:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since >= self.expiry and self._claimed(holder) and self._begun():
                return

    def gives_no_sign(self) -> bool:
        """Whether nobody holds it who is alive; may look on until the lease expires."""
        holder = self.holder() or FREE
        first, until = self._beat_of(holder), time.monotonic() + self.expiry
        while holder != FREE and not has_ended(holder) and time.monotonic() < until:
            time.sleep(self.expiry / _POLLS)
            if (self.holder() or FREE, self._beat_of(holder)) != (holder, first):
                return False
        return True

    def holder(self) -> str | None:
        """Who holds it, or ``free``; None where nobody ever did."""
        try:
            names = [path.name for path in self.root.iterdir() if not path.name.startswith(".")]
        except FileNotFoundError:
            return None
        return min(names) if names else None

    def is_lost(self) -> bool:
        """Whether another process has taken it over."""
        return not self.mine.is_dir()

    def beat(self) -> None:
        """Give a sign of life, unless it is lost."""
        self._count += 1
        # Never made anew: what is written here after a takeover may at most delay somebody else's waiting.
        with contextlib.suppress(OSError), (self.mine / BEAT).open("r+b") as file:
            file.write(f"{self._count:012d}".encode())

    def release(self) -> None:
        """Give it back.

        Raises:
            LeaseLost: it has been taken over.
        """
        _remove(self.place)
        try:
            self.mine.rename(self.root / FREE)
        except OSError:
            if self.holder() != FREE:  # else it was renamed, and the answer was lost on the way
                raise LeaseLost(self.folder / self.name) from None

    def _claimed(self, holder: str) -> bool:
        """Whether the one folder was renamed from the holder's name to this process's."""
        try:
            (self.root / holder).rename(self._entering)
        except FileNotFoundError:
            return self._entering.is_dir()
        return True

    def _founded(self) -> bool:
        """Whether the lease was not there at all, and is this process's now."""
        if self.root.is_dir():
            return False
        aside = self.root.parent / f".new.{self.mine.name}"
        (aside / self._entering.name).mkdir(parents=True)
        try:
            aside.rename(self.root)
        except OSError:
            if self._entering.is_dir():
                return True
            shutil.rmtree(aside, ignore_errors=True)
            if not self.root.is_dir():
                raise
            return False
        return True

    def _begun(self) -> bool:
        """Make the claimed folder this process's own, so that nobody else can change anything through it any more.

        The second renaming comes last: whoever was stopped before it, and claimed by another one, gets no place.
        """
        try:
            for path in list(self._entering.iterdir()):
                if path.name != BEAT:
                    _remove(path)
            (self._entering / BEAT).write_bytes(b"0" * 12)
            (self._entering / self.place.name).mkdir()
            self._entering.rename(self.mine)
        except FileNotFoundError:
            return not self.is_lost()
        return True

    def _beat_of(self, holder: str) -> bytes:
        try:
            return (self.root / holder / BEAT).read_bytes()
        except OSError:
            return b""


def _remove(place: Path) -> None:
    """Remove a place; returns once nothing can be renamed out of it any more.

    Raises:
        OSError: it belongs to a user who does not allow that.
    """
    for _ in range(_TRIES):
        shutil.rmtree(place, ignore_errors=True)
        try:
            left = [path.name for path in place.iterdir()]
        except FileNotFoundError:
            return
        if left and all(name.startswith(".nfs") for name in left):
            # Open in a process of this very host, whose own system knows that the name is gone.
            place.rename(place.with_name(f"old-{uuid.uuid4().hex[:8]}"))
            return
        time.sleep(_PAUSE_S)
    raise PermissionError(f"{place.name} cannot be removed")


_held: set[Lease] = set()


@contextlib.contextmanager
def held(
    folder: Path, name: str, *, changes: Path, wait: bool, waits: Callable[[], None], expiry: float
) -> Iterator[bool]:
    """Hold a lease and change files below ``changes`` by it; gives False, without waiting, where another has it.

    Args:
        folder: the one that is shared.
        name: of what is held.
        changes: the folder below which files are changed within the block.
        wait: until it is free or has expired.
        waits: called once before it waits.
        expiry: seconds.

    Raises:
        LeaseLost: another process has taken it over meanwhile.
        UserError: the folder cannot be written.
    """
    lease = Lease(folder, name, expiry)
    try:
        mine = lease.take()
        if not mine and wait:
            waits()
            lease.wait()
            mine = True
    except OSError as e:
        raise UserError(f"{lease.root}: cannot be written: {one_line(e.strerror or e)}") from None
    if not mine:
        yield False
        return
    _held.add(lease)
    try:
        with _beating(lease), fenced(changes, lease.place):
            yield True
    except Exception:
        if lease.is_lost():  # what this process met then was another one's work
            raise LeaseLost(changes) from None
        raise
    finally:
        _held.discard(lease)
        lost = lease.is_lost()
        if not lost:
            lease.release()
    if lost:
        raise LeaseLost(changes)


def give_back_all() -> None:
    """Give back every lease of this process, which is about to end; what still works by them changes nothing more."""
    for lease in list(_held):
        with contextlib.suppress(UserError, OSError):
            lease.release()


@contextlib.contextmanager
def _beating(lease: Lease) -> Iterator[None]:
    """Renew the lease's beat for the length of the block."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(lease.expiry / _BEATS):
            lease.beat()

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
