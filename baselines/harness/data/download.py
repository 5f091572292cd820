"""Files from the net: resumed where they broke off, and checked before anyone opens them."""

from __future__ import annotations

import hashlib
import http.client
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from baselines.harness.data.dataset import DataError
from cflows.core.atomic_write import blaming

__all__ = ["Archive", "digest", "download", "refuse_checksum"]

CHUNK = 2**20
TRIES = 6  # without a byte between them
PASSING = {408, 425, 429, 500, 502, 503, 504}  # a server that says these may be asked again
TIMEOUT = 60.0
UNREACHED = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


@dataclass(frozen=True)
class Archive:
    """A file on the net, by its address and its checksum."""

    url: str
    md5: str
    megabytes: int


def download(url: str, path: Path, *, md5: str, pause: float = 1.0) -> Path:
    """Fetch a file to ``path``, unless it is there, and verify it; return ``path``.

    What was received is kept in ``path`` + ``.part``: after a broken connection, an interruption
    or a crash, the same call asks for the rest alone. The name ``path`` is given to nothing but a
    file of the right checksum. One of a wrong checksum is removed, since a resumed download could
    never mend it; the message says so. A bar shows the progress where standard error is a terminal.

    Args:
        url: http or https.
        path: in a folder that exists.
        md5: of the whole file, in hex.
        pause: seconds before the second attempt; they double from one to the next, and a server
            that is down or busy is asked ``TRIES`` times in all. Every byte received starts the
            count anew.

    Raises:
        DataError: the server refuses, cannot be reached, or sends something else.
        OSError: the disk is full, or the folder may not be written to.

    """
    source = path
    if not path.exists():
        source = path.with_name(f"{path.name}.part")
        _receive_all(url, source, pause)
    received = digest(source, "md5")
    if received != md5:
        source.unlink()
        raise DataError(
            f"{url}: what was received has the md5 {received}, not {md5}; it was not opened and "
            "has been removed: run the same command again, and it is fetched anew"
        )
    source.replace(path)
    return path


def refuse_checksum(path: Path, md5: str) -> None:
    """Raise DataError for a file of the user's own that has another checksum; it is left alone."""
    own = digest(path, "md5")
    if own != md5:
        raise DataError(
            f"{path}: its md5 is {own}, not {md5}, so it was not opened: the copy is damaged, or "
            "another archive; if you trust it, unpack it and name the folder instead"
        )


def digest(path: Path, algorithm: str) -> str:
    """The checksum of a file in hex, read a megabyte at a time."""
    checksum = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            checksum.update(block)
    return checksum.hexdigest()


def _receive_all(url: str, part: Path, pause: float) -> None:
    failures = 0
    while True:
        before = _size(part)
        try:
            if _receive(url, part):
                return
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            reason = f"the server answers {error.code} ({error.reason})"
            if error.code == 416:
                if _is_whole(error, before):
                    return
                part.unlink(missing_ok=True)  # longer than the file: not a part of it
            elif error.code not in PASSING:
                raise DataError(f"{url}: {reason}") from None
        except UNREACHED as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        failures = 1 if _size(part) > before else failures + 1
        if failures >= TRIES:
            raise DataError(
                f"{url}: {reason}, {failures} times in a row; {_size(part):,} bytes are kept: run "
                "the same command again later, or give a copy with --from"
            )
        time.sleep(pause * 2 ** (failures - 1))


def _receive(url: str, part: Path) -> bool:
    """Append what the server has beyond the part; say whether that was all."""
    start = _size(part)
    headers = {"User-Agent": "cflows"} | ({"Range": f"bytes={start}-"} if start else {})
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        if answer.status != 206:  # the whole file, whatever was asked for
            start = 0
        length = answer.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        name = url.split("?")[0].rsplit("/", 1)[-1]
        bar = tqdm(
            desc=name,
            initial=start,
            total=total,
            unit="B",
            unit_scale=True,
            disable=None,
            leave=False,
        )
        with part.open("ab" if start else "wb") as file, bar:
            while block := answer.read(CHUNK):
                with blaming(part):
                    file.write(block)
                bar.update(len(block))
    return total is None or _size(part) == total


def _is_whole(error: urllib.error.HTTPError, size: int) -> bool:
    """Whether a server that has nothing beyond ``size`` bytes says that the file has as many."""
    total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
    return total is not None and int(total[1]) == size > 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
