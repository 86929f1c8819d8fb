"""Disk: lost writes and pages from elsewhere are caught; directories that cannot serve are refused in a line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the suite runs on torch; pip install torch")

from kvsim.calibrate import direct_io
from kvsim.calibrate.bench import Bench
from kvsim.calibrate.device import find_device
from kvsim.calibrate.kernels.disk import PAGE, Disk, ScratchFile
from kvsim.calibrate.kernels.kernel import Launch

needs_disk = pytest.mark.skipif(
    bool(direct_io.direct_io_trouble()),
    reason="no disk with O_DIRECT and 2 GiB free where temporary files go",
)


def _launch(direction: str) -> Launch:
    point = {"direction": direction, "num_bytes": 2 * PAGE, "queue_depth": 4}
    return Disk().prepare(point, Bench(find_device("cpu")))


@needs_disk
@pytest.mark.parametrize("direction", ["read", "write"])
def test_requests_that_move_nothing_are_caught(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = _launch(direction)
    assert launch.error() == 0
    monkeypatch.setattr(ScratchFile, "_request", lambda self, write, buffer, place: None)
    assert launch.error() > 0


@needs_disk
def test_pages_from_elsewhere_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = _launch("read")
    right = ScratchFile._request
    monkeypatch.setattr(
        ScratchFile, "_request", lambda self, w, buffer, place: right(self, w, buffer, place ^ PAGE)
    )
    assert launch.error() == 1


@needs_disk
def test_the_file_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(direct_io.DIRECTORY, str(tmp_path))
    _launch("read").run(0)
    assert list(tmp_path.iterdir()) == []


def test_directories_that_cannot_serve_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is none" in direct_io.direct_io_trouble(tmp_path / "missing")
    if direct_io.file_system(Path("/dev/shm")) == "tmpfs":
        assert "in memory" in direct_io.direct_io_trouble(Path("/dev/shm"))
    monkeypatch.setattr(direct_io, "file_system", lambda folder: "ext4")
    monkeypatch.setattr(direct_io, "FREE_BYTES", 2**60)
    assert "GiB free" in direct_io.direct_io_trouble(tmp_path)
    monkeypatch.setattr(direct_io, "FREE_BYTES", 0)

    def refuse(folder: Path) -> int:
        raise OSError(22, os.strerror(22))

    monkeypatch.setattr(direct_io, "open_scratch", refuse)
    assert "refuses it" in direct_io.direct_io_trouble(tmp_path)
