"""What can be fetched into the cache: the five tables from their archive, and sets of images.

The archive of the tables holds a pickle: its checksum is verified before anything in it is opened,
and the pickle is read by ``pickles``, which runs nothing.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from baselines.harness.data import cifar, mnist, published, store
from baselines.harness.data.dataset import DataError
from baselines.harness.data.download import Archive, download, refuse_checksum
from baselines.harness.data.published import PUBLISHED, Published
from cflows.core.arguments import nearest
from cflows.core.atomic_write import write_beside

__all__ = ["NAMES", "extract", "fetch"]

IMAGES = (*mnist.ARCHIVES, "cifar10")
NAMES = (*PUBLISHED, *IMAGES)

Say = Callable[[str], object]


def fetch(
    names: Sequence[str], copy: Path | None = None, *, say: Say = print, pause: float = 1.0
) -> None:
    """Put sets into the cache, where ``load`` finds them.

    The tables are converted, and so is CIFAR-10, whose archive is then removed; idx files stay as
    they are, since they hold bytes and run nothing.

    Args:
        names: of ``NAMES``.
        copy: an archive of the user's, whose checksum must be right, or a folder with its files. By
            default archives are downloaded, and sets that are here are left.
        say: takes a line on what is done.
        pause: see ``download``.

    Raises:
        DataError: an unknown name, no such file, a wrong checksum, a server that refuses, files
            that cannot be used, a package that is missing. What is done by then is kept.
        OSError: the cache cannot be written to.

    """
    if other := [name for name in names if name not in NAMES]:
        near = nearest(other[0], NAMES)
        raise DataError(f"{other[0]!r} cannot be fetched; {near}what can be: {', '.join(NAMES)}")
    if "bsds300" in names:
        published.refuse_without_h5py()
    if copy is not None and not copy.exists():
        raise DataError(f"{copy}: file not found; --from takes data.tar.gz or its folder")
    fetched = partial(_downloaded, say=say, pause=pause)
    for name in dict.fromkeys(name for name in names if name in IMAGES):
        path = cifar.converted() if name == "cifar10" else store.folder_of(name)
        if copy is None and (path.is_file() or mnist.is_folder(path)):
            say(f"{name} is here: {path}")
            continue
        if name == "cifar10":
            _fetch_cifar(copy, fetched)
        else:
            _fetch_mnist(name, copy, path, fetched)
        say(f"{name}: in {path}")
    tables = [PUBLISHED[name] for name in dict.fromkeys(names) if name in PUBLISHED]
    _fetch_tables(tables, copy, fetched, say)


def _downloaded(archive: Archive, path: Path, *, say: Say, pause: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        say(f"fetching {archive.url} ({archive.megabytes} MB)")
    return download(archive.url, path, md5=archive.md5, pause=pause)


Fetch = Callable[[Archive, Path], Path]


# Tables -------------------------------------------------------------------------------------------


def _fetch_tables(todo: list[Published], copy: Path | None, fetched: Fetch, say: Say) -> None:
    archive = published.ARCHIVE
    if copy is None:
        for table in [table for table in todo if store.manifest(table.name)]:
            say(f"{table.name} is here: {store.folder_of(table.name)}")
            todo.remove(table)
    if not todo:
        return
    if copy is not None and copy.is_dir():
        _convert_all(todo, copy, f"the folder {copy}", say)
        return
    if copy is not None:
        refuse_checksum(copy, archive.md5)
    else:
        copy = fetched(archive, store.cache_folder() / "zenodo-1161203-data.tar.gz")
        say(f"{copy} is kept, for further sets; remove it when you have them")
    store.cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacked.", dir=store.cache_folder()) as folder:
        say(f"unpacking {copy}")
        extract(copy, [file for table in todo for file in table.files], Path(folder))
        _convert_all(todo, Path(folder), f"{archive.url}, md5 {archive.md5}", say)


def extract(archive: Path, wanted: Iterable[str], folder: Path) -> None:
    """Unpack the members whose path ends in a wanted one, such as ``power/data.npy``.

    Every member, wanted or not, passes tarfile's "data" filter first: an absolute path, ``..``, a
    link to the outside or a device refuses the archive as a whole. The caller has verified its
    checksum, and disposes of ``folder`` when this raises.

    Args:
        archive: a tar file, compressed or not.
        wanted: paths of a folder and a file.
        folder: an empty one.

    Raises:
        DataError: the archive is refused, damaged, or lacks a wanted file.
        OSError: the disk is full.

    """
    missing = set(wanted)
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                tarfile.data_filter(member, str(folder))
                name = "/".join(PurePosixPath(member.name).parts[-2:])
                if member.isfile() and name in missing:
                    member.name = name
                    tar.extract(member, folder, filter="data")
                    missing.discard(name)
    except tarfile.FilterError as error:
        raise DataError(
            f"{archive}: refused, since a member would be written outside its folder: {error}"
        ) from None
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{archive}: cannot be unpacked ({error})") from None
    if missing:
        raise DataError(f"{archive}: lacks {', '.join(sorted(missing))}")


def _convert_all(todo: Iterable[Published], folder: Path, origin: str, say: Say) -> None:
    for table in todo:
        files = published.find(table, folder)
        if files is None:
            raise DataError(
                f"{folder}: lacks {' and '.join(table.files)} of {table.name}; name the folder "
                "above these"
            )
        data = published.prepare(table, files)
        stored = store.save(data, origin)
        sizes = " / ".join(f"{size:,}" for size in data.sizes)
        rows = f"{data.features} columns, {sizes} rows to train / validate / test"
        say(f"{table.name}: {rows}, in {stored}")
        if data.note:
            say(data.note)


# Images -------------------------------------------------------------------------------------------


def _fetch_mnist(name: str, copy: Path | None, kept: Path, fetched: Fetch) -> None:
    if copy is None:
        for archive in mnist.ARCHIVES[name]:
            fetched(archive, kept / archive.url.rsplit("/", 1)[-1])
        return
    folder = next((f for f in (copy, copy / name) if mnist.is_folder(f)), None)
    if folder is None:
        raise DataError(
            f"{copy}: holds no {mnist.FILES['train']} and {mnist.FILES['test']} of {name}; --from "
            "takes the folder with these, or with .gz"
        )
    mnist.read_images(folder)  # what is damaged replaces nothing
    kept.mkdir(parents=True, exist_ok=True)
    for stem in mnist.FILES.values():
        file = mnist.file_in(folder, stem)
        assert file is not None
        write_beside(kept / file.name, partial(shutil.copyfile, file))
        for other in {stem, f"{stem}.gz"} - {file.name}:
            (kept / other).unlink(missing_ok=True)


def _fetch_cifar(copy: Path | None, fetched: Fetch) -> None:
    if copy is None:
        received = fetched(cifar.DOWNLOAD, store.cache_folder() / cifar.ARCHIVE)
        cifar.convert(received)
        received.unlink()
        return
    source = copy if copy.is_file() else cifar.source_in(copy)
    if source is None:
        raise DataError(
            f"{copy}: holds neither {cifar.FOLDER} nor {cifar.ARCHIVE}; name the archive or its "
            "folder"
        )
    if source.is_file():
        refuse_checksum(source, cifar.DOWNLOAD.md5)
    cifar.convert(source)
