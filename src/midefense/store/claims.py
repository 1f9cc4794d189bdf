"""Claims: who works on what. A claim only saves work; correctness rests on ids and renames, so at worst, on a network
disk, something is done twice."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from midefense.foreign import json_of, read_foreign
from midefense.terminal import duration
from midefense.types import Refused

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
LOOKS, LOOK_SECONDS = 24, 0.5  # for a heartbeat of a claim that seems silent: over more than two of them
MOST_BYTES = 1 << 16  # of a claim
CLAIMED = ("work", "sweeps", "cache")  # the folders of a store in which claims are
# When this process first saw a claim as it is, by its own clock: that of another host may be wrong.
_SEEN: dict[Path, tuple[int, float]] = {}
_SILENT: dict[Path, int] = {}  # claims that this process looked at for a heartbeat, in vain, and when they last changed


@contextlib.contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Whether this process got the claim file `path`; it is kept fresh, and given back at the end."""
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time(), "token": uuid.uuid4().hex}
    text = json.dumps(owner)
    if not _take(path, text):
        yield False
        return
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(path, text, stop), daemon=True, name="claim-heartbeat")
    beat.start()
    try:
        yield True
    finally:
        stop.set()
        beat.join()
        if _holds(path, text):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty: work is left for the next one
            path.parent.rmdir()


def _take(path: Path, text: str) -> bool:
    """Create a claim file that says `text`; one left by a dead or silent process is taken over."""
    for _ in range(3):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
            return True
        except FileNotFoundError:
            continue  # another process has just cleared the folder
        except FileExistsError:
            if not _stale(path):
                return False
            _clear(path)
    return False


def _clear(path: Path) -> None:
    """Remove a stale claim, one process at a time: it is judged again in turn, as another may just have taken it over.
    (To rename it away and back would leave a moment in which a third process finds no claim.)"""
    turn = path.with_name(f".{path.name}.turn")
    try:
        turn.touch(exist_ok=False)
    except FileNotFoundError:
        return  # another process has just cleared the folder
    except FileExistsError:
        if _stale(turn):  # its process was killed in these few lines
            _discard(turn)
        return
    try:
        if _stale(path):
            _discard(path)
    finally:
        turn.unlink(missing_ok=True)


def _holds(path: Path, text: str) -> bool:
    """Whether the claim is still the one that says `text`: a claim that fell silent may have been taken over."""
    try:
        return read_foreign(path, MOST_BYTES, "a claim") == text.encode()
    except (FileNotFoundError, Refused):
        return False


def owner_of(path: Path) -> str:
    """Who holds a claim, in words, the file that says so, and for how long by this machine's clock."""
    owner = _owner(path)
    who = "a process that left no name" if owner is None else f"process {owner['pid']} on {owner['host']}"
    since = owner.get("time") if owner is not None else None
    held = f", for {duration(max(0.0, time.time() - since))} now" if isinstance(since, int | float) else ""
    return f"{who}, see {path}{held}"


def claims_in(root: Path) -> list[Path]:
    """The files of all claims in the store at `root`, live and stale: on unfinished work, on points of sweeps, and on
    pictures that are being decoded. Links are followed no further than these folders themselves may be some."""
    folders = [(Path(folder), files) for top in CLAIMED for folder, _, files in os.walk(root / top)]
    return sorted(
        folder / name
        for folder, files in folders
        for name in files
        if not name.startswith(".") and (name.endswith(".claim") or folder.name == "claims")
    )


def standing(root: Path) -> dict[Path, bool]:
    """All claims in the store at `root`, and whether somebody may be at work under each; what is given back while this
    looks is not among them.

    What is deleted is lost, so this asks more than who takes work over does (`_stale`). On this host whoever is alive
    counts, however silent: it may be stopped. Elsewhere, or where a claim names nobody, what seems silent may have
    another clock: a heartbeat is looked for, for up to `LOOKS` times `LOOK_SECONDS`, once in a process.
    """
    _look_for_heartbeats([path for path in claims_in(root) if _at_work(path) is None])
    answers = {path: _at_work(path) for path in claims_in(root)}  # listed again: some came, or changed hands
    return {path: answer is not False for path, answer in answers.items() if os.path.lexists(path)}


def _look_for_heartbeats(paths: Iterable[Path]) -> None:
    """Note which claims do not change while this looks."""
    began = {path: changed for path in paths if (changed := _changed(path)) is not None}
    silent = set(began)
    for _ in range(LOOKS):
        if not silent:
            break
        time.sleep(LOOK_SECONDS)
        silent = {path for path in silent if _changed(path) == began[path]}
    _SILENT.update({path: began[path] for path in silent})


def _at_work(path: Path) -> bool | None:
    """Whether the owner of a claim is at work, None where a heartbeat has to be looked for."""
    owner, changed = _owner(path), _changed(path)
    if owner is not None and owner["host"] == socket.gethostname():
        return _alive(owner["pid"])
    if changed is not None and 0 <= time.time() - changed / 1e9 <= STALE_SECONDS:
        return True
    return False if changed is not None and _SILENT.get(path) == changed else None


def _changed(path: Path) -> int | None:
    """When a claim last changed, in nanoseconds by the clock of its disk; None where it was given back."""
    _owner(path)  # a network disk says how a file is now to who opens it
    with contextlib.suppress(FileNotFoundError):
        return path.lstat().st_mtime_ns
    return None


def _stale(path: Path) -> bool:
    """Whether the owner is dead, or has been silent for too long (on another host, or killed while writing).

    A claim whose time lies in the future, by a wrong clock, is silent when it did not change while we looked on.
    """
    try:
        modified = path.lstat().st_mtime_ns  # a link may lead nowhere, or to itself
    except FileNotFoundError:
        return False  # just given back
    before, since = _SEEN.get(path, (None, 0.0))
    if before != modified:
        since = time.monotonic()
        _SEEN[path] = modified, since
    if time.time() - modified / 1e9 > STALE_SECONDS or time.monotonic() - since > STALE_SECONDS:
        return True
    owner = _owner(path)  # None: being written, or its writer was killed, or it is none of ours
    return owner is not None and owner["host"] == socket.gethostname() and not _alive(owner["pid"])


def _owner(path: Path) -> dict | None:
    """What a claim says of its owner, None where it says nothing that can be understood."""
    try:
        owner = json_of(read_foreign(path, MOST_BYTES, "a claim"), path)
    except (OSError, Refused):
        return None
    known = isinstance(owner, dict) and isinstance(owner.get("host"), str) and type(owner.get("pid")) is int
    return owner if known and 0 < owner["pid"] < 1 << 31 else None


def _discard(path: Path) -> None:
    """Remove a claim, whatever it is: something else in its place is set aside."""
    if path.is_dir():
        path.rename(path.with_name(f".spoilt-{path.name}-{uuid.uuid4().hex}"))
    else:
        path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _heartbeat(path: Path, text: str, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(FileNotFoundError):
            if _holds(path, text):
                os.utime(path)
