"""Room on the disk: what is taken before it is written, and what a folder takes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

BLOCK = 1 << 20


def reserve(path: Path, size: int) -> None:
    """Write a file of `size` zero bytes whose room on the disk is its own.

    A file that is only made as long has none: whoever maps it and writes when the disk is full dies of SIGBUS. Raises
    `OSError` (ENOSPC, EDQUOT, EFBIG) where there is no room; nothing is left then.
    """
    try:
        with open(path, "wb") as file:
            if not _allocate(file.fileno(), size):
                for start in range(0, size, BLOCK):
                    file.write(bytes(min(BLOCK, size - start)))
    except OSError as error:
        path.unlink(missing_ok=True)
        if error.errno is not None:
            error.filename = str(path)
        raise


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder. No link is followed."""
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size
    total = 0
    with os.scandir(path) as found:
        for entry in found:
            inner = entry.is_dir(follow_symlinks=False)
            total += size_of(Path(entry.path)) if inner else entry.stat(follow_symlinks=False).st_size
    return total


def _allocate(file: int, size: int) -> bool:
    """Whether the system gave an open file its room; not all systems and file systems can."""
    if not hasattr(os, "posix_fallocate") or size == 0:
        return False
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return False
        raise
    return True
