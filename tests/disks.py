"""Disks that are small or read-only: of one's own, where one is root, else a test is skipped."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small(place: Path, kilobytes: int = 64) -> Iterator[Path]:
    """A disk of so many kilobytes, mounted at a new folder."""
    place.mkdir()
    with _mounted(place, ["-t", "tmpfs", "-o", f"size={kilobytes}k", "none"]):
        yield place


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """A folder that nothing can be written to, not even by root."""
    if os.geteuid():
        mode = folder.stat().st_mode
        folder.chmod(0o555)
        try:
            yield folder
        finally:
            folder.chmod(mode)
        return
    with _mounted(folder, ["--bind", str(folder)]):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield folder


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file can grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def _mounted(place: Path, arguments: list[str]) -> Iterator[None]:
    try:
        subprocess.run(["mount", *arguments, str(place)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a disk is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
