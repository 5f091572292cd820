from __future__ import annotations

import pytest
from made_data import Server

CONTENT = bytes(range(256)) * 40_000  # ten megabytes: several chunks


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    found = Server(CONTENT)
    yield found
    found.http.shutdown()
    found.http.server_close()
