"""A server with faults, archives, and pickled frames, for the tests of data."""

from __future__ import annotations

import io
import pickle
import tarfile
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np


class Server:
    """Serves one file, with the faults that it is told to have.

    Attributes:
        content: the file.
        codes: answers to give before the file, one a request.
        stop_after: bytes after which a connection breaks, one a request.
        ranges: whether a Range is honoured.
        asked: the Range of each request.

    """

    def __init__(self, content):
        self.content, self.codes, self.stop_after, self.ranges = content, [], [], True
        self.asked = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/data.tar.gz"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request):
        wanted = request.headers.get("Range")
        self.asked.append(wanted)
        if self.codes:
            request.send_error(self.codes.pop(0))
            return
        start = int(wanted[6:-1]) if wanted and self.ranges else 0
        if start >= len(self.content) and start:
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(self.content)}")
            request.end_headers()
            return
        part = self.content[start:]
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(part)))
        request.end_headers()
        request.wfile.write(part[: self.stop_after.pop(0)] if self.stop_after else part)


def archive(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
    return path


def gas_frame(n=200):
    rng = np.random.RandomState(3)
    free = rng.normal(size=(n, 4))
    near = free[:, :1] + 0.05 * rng.normal(size=(n, 3))  # all above .98 with one another
    mirrored = -free[:, 1:2] + 0.01 * rng.normal(size=(n, 1))  # signed: stays
    time = np.arange(n)[:, None]
    raw = np.hstack([time, free[:, 3:], free, near, mirrored])
    return raw, ("Time", "Meth", "a", "b", "c", "Eth", "n0", "n1", "n2", "m")


def stand_in(module, name):
    """A class that pickles as pandas' own of this name would."""
    cls = type(name, (), {"__module__": module})
    cls.__reduce_ex__ = lambda self, protocol: self.how
    return cls


class FramePickler(pickle._Pickler):
    """Writes stand-ins by their pandas names, which cannot be imported here."""

    def save_global(self, obj, name=None):
        if getattr(obj, "__module__", "").startswith("pandas"):
            self.write(pickle.GLOBAL + f"{obj.__module__}\n{obj.__name__}\n".encode())
            self.memoize(obj)
        else:
            super().save_global(obj, name)

    dispatch: ClassVar = {
        **pickle._Pickler.dispatch,
        type: save_global,
        types.FunctionType: save_global,
    }


def made(module, name, args, state=None):
    cls = stand_in(module, name)
    found = cls()
    found.how = (cls, args) if state is None else (cls, args, state)
    return found


def frame_pickle(raw, names, layout, protocol=2):
    """What ``to_pickle`` writes: ``old`` to pandas 1.2, ``new`` from 1.3, ``strings`` from 3."""
    labels = np.array(names, object)
    if layout == "strings":
        labels = made("pandas._libs.arrays", "f", (None,), ("a dtype", labels))
    index_class = stand_in("pandas.core.indexes.base", "Index")
    index = made("pandas.core.indexes.base", "_new_Index", (index_class, {"data": labels}))
    half = len(names) // 2
    parts = [(raw[:, :half].T, slice(0, half)), (raw[:, half:].T, np.arange(half, len(names)))]
    manager, name = "pandas.core.internals.managers", "BlockManager"
    if layout == "old":
        blocks = [{"values": values, "mgr_locs": places} for values, places in parts]
        axes = [index, None]
        managed = made(manager, name, (), (axes, [], [], {"0.14.1": {"blocks": blocks}}))
        state = {"_data": managed}
    else:
        unpickle = ("pandas._libs.internals", "_unpickle_block")
        blocks = tuple(made(*unpickle, (*part, 2)) for part in parts)
        state = {"_mgr": made(manager, name, (blocks, [index, None]))}
    file = io.BytesIO()
    FramePickler(file, protocol).dump(made("pandas.core.frame", "DataFrame", (), state))
    return file.getvalue()


class Payload:
    """Runs a call of its own when it is unpickled as usual."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))
