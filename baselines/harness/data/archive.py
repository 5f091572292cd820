"""The archive of the five tables: only what is wanted leaves it, and nothing leaves its folder."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from baselines.harness.data.dataset import DataError

__all__ = ["ARCHIVE", "Archive", "extract"]


@dataclass(frozen=True)
class Archive:
    """A file on the net, by its address and its checksum."""

    url: str
    md5: str
    megabytes: int


ARCHIVE = Archive(
    "https://zenodo.org/records/1161203/files/data.tar.gz",
    "9b9c9b0375315ad270eba4ce80c093ab",
    857,
)


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
