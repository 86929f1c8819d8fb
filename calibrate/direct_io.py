"""A scratch file that is read and written past the page cache, and why there cannot be one."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from pathlib import Path

FREE_BYTES = 2 * 2**30
DIRECTORY = "KVSIM_CALIBRATE_DISK"  # environment variable; default: where temporary files go


def scratch_directory() -> Path:
    return Path(os.environ.get(DIRECTORY) or tempfile.gettempdir())


def direct_io_trouble(folder: Path | None = None) -> str:
    """Why :func:`open_scratch` cannot work in ``folder`` (default: :func:`scratch_directory`), as a line; empty if it can."""
    folder = folder or scratch_directory()
    hint = f"set {DIRECTORY} to a directory on another disk"
    if not folder.is_dir():
        return f"needs a directory for its file: {folder} is none; {hint}"
    if not hasattr(os, "O_DIRECT"):
        return "needs O_DIRECT, which this operating system lacks"
    if file_system(folder) in ("tmpfs", "ramfs"):
        return f"needs a disk: {folder} is in memory ({file_system(folder)}); {hint}"
    free = shutil.disk_usage(folder).free
    if free < FREE_BYTES:
        return f"needs {FREE_BYTES / 2**30:.0f} GiB free in {folder}, found {free / 2**30:.1f}; {hint}"
    try:
        file = open_scratch(folder)
    except OSError as error:
        return f"needs O_DIRECT: the file system of {folder} refuses it ({error.strerror}); {hint}"
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as page:
            os.pwritev(file, [page], 0)
    except OSError as error:
        return f"needs O_DIRECT: writing to {folder} failed ({error.strerror}); {hint}"
    finally:
        os.close(file)
    return ""


def open_scratch(folder: Path) -> int:
    """Descriptor of a new file without a name: its space is free again when it is closed, whatever happens."""
    named, path = tempfile.mkstemp(prefix="kvsim-calibrate-", dir=folder)
    try:
        return os.open(path, os.O_RDWR | os.O_DIRECT)
    finally:
        os.close(named)
        os.unlink(path)


def file_system(folder: Path) -> str:
    """Type of the file system that ``folder`` lies on, as /proc/mounts calls it; empty if unknown."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    place = folder.resolve()
    found = [(len(at), kind) for _, at, kind, *_ in mounts if place.is_relative_to(at.replace("\\040", " "))]
    return max(found, default=(0, ""))[1]
