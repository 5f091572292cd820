"""What can be fetched into the cache; the five tables: from their archive, converted once.

The archive holds a pickle: its checksum is verified before anything in it is opened, and the pickle
is read by ``frames``, which runs nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from baselines.harness.data import archive as archives
from baselines.harness.data import store
from baselines.harness.data.archive import Archive, extract
from baselines.harness.data.dataset import DataError
from baselines.harness.data.download import download, refuse_checksum
from baselines.harness.data.fetching_images import IMAGES, fetch_images
from baselines.harness.data.published import (
    PUBLISHED,
    Published,
    find,
    prepare,
    refuse_without_h5py,
)
from cflows.core.messages import nearest

__all__ = ["fetch"]


def fetch(
    names: Sequence[str],
    given: Path | None = None,
    *,
    say: Callable[[str], object] = print,
    pause: float = 1.0,
) -> None:
    """Convert sets into the cache, from the archive or from a copy of it.

    Args:
        names: of the five, or of ``fetching_images.IMAGES``.
        given: a copy of the archive, whose checksum must be right, or a folder with its files. By
            default the archive is downloaded and kept, and sets that were converted are left.
        say: takes a line on what is done.
        pause: see ``download``.

    Raises:
        DataError: an unknown name, no such file, a wrong checksum, a server that refuses, files
            that cannot be used, a package that is missing. What is done by then is kept.
        OSError: the cache cannot be written to.

    """
    for name in names:
        _refuse_unknown(name)
    if "bsds300" in names:
        refuse_without_h5py()
    if given is not None and not given.exists():
        raise DataError(f"{given}: file not found; --from takes data.tar.gz or its folder")
    for name in dict.fromkeys(name for name in names if name in IMAGES):
        fetch_images(name, given, say, pause=pause)
    todo = [PUBLISHED[name] for name in dict.fromkeys(names) if name in PUBLISHED]
    if not todo:
        return
    if given is not None and given.is_dir():
        _convert_all(todo, given, f"the folder {given}", say)
        return
    archive = archives.ARCHIVE
    if given is not None:
        refuse_checksum(given, archive.md5)
        _unpack(todo, given, archive, say)
        return
    for table in [table for table in todo if store.manifest(table.name)]:
        say(f"{table.name} is here: {store.place_of(table.name)}")
        todo.remove(table)
    if todo:
        _unpack(todo, _downloaded(archive, pause, say), archive, say)


def _unpack(
    todo: Sequence[Published], place: Path, archive: Archive, say: Callable[[str], object]
) -> None:
    store.cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacked.", dir=store.cache_folder()) as folder:
        say(f"unpacking {place}")
        extract(place, [file for table in todo for file in table.files], Path(folder))
        _convert_all(todo, Path(folder), f"{archive.url}, md5 {archive.md5}", say)


def _downloaded(archive: Archive, pause: float, say: Callable[[str], object]) -> Path:
    place = store.cache_folder() / "zenodo-1161203-data.tar.gz"
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        say(f"fetching {archive.url} ({archive.megabytes} MB)")
    download(archive.url, place, md5=archive.md5, pause=pause)
    say(f"{place} is kept, for further sets; remove it when you have them")
    return place


def _convert_all(
    todo: Iterable[Published], folder: Path, origin: str, say: Callable[[str], object]
) -> None:
    for table in todo:
        files = find(table, folder)
        if files is None:
            raise DataError(
                f"{folder}: lacks {' and '.join(table.files)} of {table.name}; name the folder "
                "above these"
            )
        data = prepare(table, files)
        place = store.save(data, origin)
        sizes = " / ".join(f"{size:,}" for size in data.sizes)
        say(f"{table.name}: {data.features} columns, {sizes} rows to train / validate / test, "
            f"in {place}")  # fmt: skip
        if data.note:
            say(data.note)


def _refuse_unknown(name: str) -> None:
    known = (*PUBLISHED, *IMAGES)
    if name not in known:
        raise DataError(
            f"{name!r} cannot be fetched; {nearest(name, known)}what can be: {', '.join(known)}"
        )
