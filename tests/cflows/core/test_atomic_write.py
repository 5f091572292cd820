"""Files whole or as they were, and links, devices and pipes that stay what they are."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from threading import Thread

import disks
import pytest

from baselines import MAF
from cflows import load
from cflows.core.atomic_write import refuse_unwritable, write_beside, write_whole


def test_a_file_is_replaced_whole_and_nothing_is_left_beside(tmp_path):
    place = tmp_path / "a"
    for content in ("one", b"two", memoryview(b"three"), "vier ±"):
        write_whole(place, content)
    assert place.read_text(encoding="utf-8") == "vier ±"
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("relative", [True, False])
def test_a_link_stays_and_its_target_is_written(there, relative, tmp_path):
    (tmp_path / "far").mkdir()
    aim, link, second = tmp_path / "far" / "a", tmp_path / "link", tmp_path / "second"
    if there:
        aim.write_text("old")
    link.symlink_to("far/a" if relative else aim)
    second.symlink_to(link)
    refuse_unwritable(second)
    write_whole(second, "new")
    assert second.is_symlink()
    assert link.is_symlink()
    assert not aim.is_symlink()
    assert aim.read_text() == "new"
    assert [p.name for p in (tmp_path / "far").iterdir()] == ["a"]


def test_a_link_out_of_a_linked_folder(tmp_path):
    """The dots of a link count from the folder that it lies in, not from the one that was named."""
    (tmp_path / "x" / "deep").mkdir(parents=True)
    (tmp_path / "short").symlink_to("x/deep")
    (tmp_path / "x" / "deep" / "link").symlink_to("../a")
    write_whole(tmp_path / "short" / "link", "new")
    assert (tmp_path / "x" / "a").read_text() == "new"


def test_links_that_lead_nowhere(tmp_path):
    (tmp_path / "round").symlink_to("about")
    (tmp_path / "about").symlink_to("round")
    (tmp_path / "lost").symlink_to("none/a")
    (tmp_path / "folder").symlink_to(".")
    for name, kind in (
        ("round", OSError),
        ("lost", FileNotFoundError),
        ("folder", IsADirectoryError),
    ):
        for act in (refuse_unwritable, lambda path: write_whole(path, "new")):
            with pytest.raises(kind, match=name):
                act(tmp_path / name)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_pipe_gets_the_bytes_and_stays(tmp_path):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    refuse_unwritable(pipe)
    MAF(2, layers=1, hidden=(8,)).save(pipe)
    reader.join(20)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    (tmp_path / "flow").write_bytes(got[0])
    assert load(tmp_path / "flow").features == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
def test_devices(tmp_path):
    null, full, block = tmp_path / "null", tmp_path / "full", tmp_path / "block"
    os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(full, stat.S_IFCHR | 0o666, os.makedev(1, 7))
    os.mknod(block, stat.S_IFBLK | 0o666, os.makedev(1, 250))
    (tmp_path / "link").symlink_to("null")
    for place in (null, tmp_path / "link"):
        refuse_unwritable(place)
        write_whole(place, "gone")
    with pytest.raises(OSError, match="full") as caught:
        write_whole(full, "no room")
    assert caught.value.errno == errno.ENOSPC
    for act in (refuse_unwritable, lambda path: write_whole(path, "x")):
        with pytest.raises(OSError, match="is a block device; name a file"):
            act(block)
    assert stat.S_ISCHR(null.stat().st_mode)
    assert stat.S_ISCHR(full.stat().st_mode)
    assert stat.S_ISBLK(block.stat().st_mode)
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}"])
def test_an_open_descriptor(name, tmp_path):
    """What a shell redirects to goes on where it stands: nothing is renamed under it."""
    with open(tmp_path / "a", "w+b") as file:
        file.write(b"before ")
        file.flush()
        link = tmp_path / "link"
        link.symlink_to(name.format(file.fileno()))
        for path in (name.format(file.fileno()), link):
            refuse_unwritable(path)
            write_whole(path, "written ")
        number = file.fileno()
    assert (tmp_path / "a").read_bytes() == b"before written written "
    with pytest.raises(OSError, match=name.format(number)) as caught:
        refuse_unwritable(name.format(number))
    assert caught.value.errno == errno.EBADF


def test_modes_stay_and_new_files_have_what_the_system_gives(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.touch()
    old.chmod(0o640)
    seen = []

    def write(beside: Path) -> None:
        beside.write_text("x")
        seen.append(stat.S_IMODE(beside.stat().st_mode))

    before = os.umask(0o027)
    try:
        old.chmod(0o604)
        write_beside(old, write)
        write_beside(new, write)
    finally:
        os.umask(before)
    assert seen == [0o604, 0o640]  # from the first byte on
    assert [stat.S_IMODE(p.stat().st_mode) for p in (old, new)] == [0o604, 0o640]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_owner_stays(tmp_path):
    place = tmp_path / "a"
    place.touch()
    os.chown(place, 12345, 23456)
    write_whole(place, "x")
    assert (place.stat().st_uid, place.stat().st_gid) == (12345, 23456)


@pytest.mark.parametrize("character", ["x", "±", "字"])
def test_names_as_long_as_the_system_takes(character, tmp_path):
    place = tmp_path / (character * (255 // len(character.encode())))
    write_whole(place, "x")
    write_whole(place, "y")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["y"]
    longer = tmp_path / f"{place.name}{character}"
    for act in (refuse_unwritable, lambda path: write_whole(path, "x")):
        with pytest.raises(OSError, match=character) as caught:
            act(longer)
        assert caught.value.errno == errno.ENAMETOOLONG


def test_a_file_size_limit(tmp_path):
    place = tmp_path / "a"
    place.write_text("earlier")
    with disks.limited(4096):
        refuse_unwritable(place, 4096)
        refused(place, errno.EFBIG)
        with pytest.raises(OSError, match=str(place)) as caught:
            MAF(2).save(place)
    assert caught.value.errno == errno.EFBIG
    assert place.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [place]


def test_a_full_disk(tmp_path):
    with disks.small(tmp_path / "disk") as disk:
        place, link = disk / "a", tmp_path / "link"
        place.write_text("earlier")
        link.symlink_to(place)
        for path in (place, link):
            refused(path, errno.ENOSPC)
            with pytest.raises(OSError, match=str(path)) as caught:
                MAF(2).save(path)
            assert caught.value.errno == errno.ENOSPC
        refuse_unwritable(place, 1000)
        assert place.read_text() == "earlier"
        assert list(disk.iterdir()) == [place]


def refused(place: Path, number: int) -> None:
    with pytest.raises(OSError, match=str(place)) as caught:
        refuse_unwritable(place, 100_000)
    assert caught.value.errno == number


def test_a_read_only_folder(tmp_path):
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir()
    (folder / "a").write_text("earlier")
    link.symlink_to(folder / "new")
    with disks.read_only(folder):
        for place in (folder / "a", folder / "new", link):
            for act in (refuse_unwritable, lambda path: write_whole(path, "x")):
                with pytest.raises(PermissionError, match="may not be written to"):
                    act(place)
    assert [p.read_text() for p in folder.iterdir()] == ["earlier"]


def test_a_folder_that_goes_meanwhile(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()

    def write(beside: Path) -> None:
        beside.write_text("x")
        beside.unlink()
        folder.rmdir()

    with pytest.raises(FileNotFoundError, match=str(folder / "a")):
        write_beside(folder / "a", write)


def test_an_error_of_another_file_names_that(tmp_path):
    with pytest.raises(FileNotFoundError, match="source"):
        write_beside(tmp_path / "a", lambda _: (tmp_path / "source").read_bytes())
    assert list(tmp_path.iterdir()) == []


WRITER = """
import os, sys, time
from cflows.core.atomic_write import write_beside

def write(beside):
    with open(beside, "wb") as file:
        file.write(b"half")
        file.flush()
        print("half", flush=True)
        time.sleep(60)

write_beside(sys.argv[1], write)
"""


@pytest.mark.parametrize("kind", ["file", "link", "pipe"])
def test_a_kill_in_the_middle_leaves_what_was_there(kind, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    place = aim = folder / "a"
    if kind == "pipe":
        os.mkfifo(place)
        got = []
        # Opened for both, so that opening does not wait for the writer that never comes.
        reader = os.open(place, os.O_RDWR | os.O_NONBLOCK)
    else:
        aim.write_text("earlier")
    if kind == "link":
        place = tmp_path / "link"
        place.symlink_to(aim)
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(place)],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert process.stdout.readline() == b"half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    if kind == "pipe":
        with pytest.raises(BlockingIOError):
            got.append(os.read(reader, 1))
        os.close(reader)
        assert stat.S_ISFIFO(place.stat().st_mode)
    else:
        assert place.is_symlink() == (kind == "link")
        assert aim.read_text() == "earlier"
        write_whole(place, "later")  # what the kill left is in nobody's way
        assert aim.read_text() == "later"
