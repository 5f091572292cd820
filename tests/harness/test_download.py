"""Downloads from a server on 127.0.0.1, and what leaves an archive."""

from __future__ import annotations

import hashlib

import pytest
from made_data import archive

from baselines.harness.data import DataError
from baselines.harness.data.download import download
from baselines.harness.data.fetching import extract

CONTENT = bytes(range(256)) * 40_000  # ten megabytes: several chunks
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


def fetched(server, folder):
    place = download(server.url, folder / "data.tar.gz", md5=MD5, pause=0.001)
    assert place.read_bytes() == CONTENT
    assert [path.name for path in folder.iterdir()] == ["data.tar.gz"]


def test_whole(server, tmp_path, capsys):
    fetched(server, tmp_path)
    assert server.asked == [None]
    fetched(server, tmp_path)  # it is there: verified, not asked for
    assert server.asked == [None]
    assert capsys.readouterr().err == ""  # no bar where there is no terminal


def test_cut_off_half_way_and_resumed(server, tmp_path):
    half = len(CONTENT) // 2
    server.stop_after = [half]
    fetched(server, tmp_path)
    assert server.asked == [None, f"bytes={half}-"]


def test_an_earlier_part_is_gone_on_with(server, tmp_path):
    (tmp_path / "data.tar.gz.part").write_bytes(CONTENT[:1000])
    fetched(server, tmp_path)
    assert server.asked == ["bytes=1000-"]


def test_a_server_without_ranges_starts_anew(server, tmp_path):
    (tmp_path / "data.tar.gz.part").write_bytes(b"x" * 1000)
    server.ranges = False
    fetched(server, tmp_path)


def test_a_part_that_was_whole_is_verified_and_kept(server, tmp_path):
    (tmp_path / "data.tar.gz.part").write_bytes(CONTENT)
    fetched(server, tmp_path)
    assert len(server.asked) == 1


def test_a_part_longer_than_the_file_is_no_part_of_it(server, tmp_path):
    (tmp_path / "data.tar.gz.part").write_bytes(CONTENT + b"more")
    fetched(server, tmp_path)
    assert server.asked[-1] is None


def test_503_twice(server, tmp_path):
    server.codes = [503, 503]
    fetched(server, tmp_path)
    assert len(server.asked) == 3


def test_pauses_double_and_every_byte_starts_the_count_anew(server, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr("time.sleep", pauses.append)
    server.codes, server.stop_after = [503] * 4, [5, 5, 5]
    fetched(server, tmp_path)
    assert pauses == [0.001, 0.002, 0.004, 0.008, 0.001, 0.001, 0.001]


def test_a_server_that_stays_down_keeps_the_part(server, tmp_path):
    server.codes = [503] * 50
    (tmp_path / "data.tar.gz.part").write_bytes(CONTENT[:1000])
    with pytest.raises(DataError, match=r"503 .*6 times in a row; 1,000 bytes are kept.*--from"):
        fetched(server, tmp_path)
    assert (tmp_path / "data.tar.gz.part").read_bytes() == CONTENT[:1000]
    assert len(server.asked) == 6


def test_a_refusal_is_not_asked_again(server, tmp_path):
    server.codes = [404]
    with pytest.raises(DataError, match="answers 404"):
        fetched(server, tmp_path)
    assert len(server.asked) == 1


def test_no_server(server, tmp_path):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(DataError, match=r"data\.tar\.gz: .*6 times in a row"):
        fetched(server, tmp_path)


def test_a_wrong_checksum_is_never_given_the_name_and_the_next_run_is_whole(server, tmp_path):
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(DataError, match=rf"not {MD5}; it was not opened and has been removed"):
        fetched(server, tmp_path)
    assert list(tmp_path.iterdir()) == []
    server.content = CONTENT
    fetched(server, tmp_path)


def test_what_lies_there_is_verified_again(server, tmp_path):
    (tmp_path / "data.tar.gz").write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match="has been removed"):
        fetched(server, tmp_path)
    assert server.asked == []
    fetched(server, tmp_path)


# Archives -----------------------------------------------------------------------------------------


def test_only_what_is_wanted_leaves(tmp_path):
    place = archive(tmp_path / "a.tgz", {"data/power/data.npy": b"1", "data/mnist/x": b"2"})
    out = tmp_path / "out"
    out.mkdir()
    extract(place, ["power/data.npy"], out)
    assert [path for path in out.rglob("*") if path.is_file()] == [out / "power" / "data.npy"]
    assert (out / "power" / "data.npy").read_bytes() == b"1"


@pytest.mark.parametrize(
    "member",
    [
        {"../power/data.npy": b"evil"},
        {"data/../../power/data.npy": b"evil"},
        {"../other": b"evil"},
        {"data/power": "../../outside", "data/power/data.npy": b"evil"},
        {"data/link": "/etc/passwd"},
    ],
)
def test_nothing_leaves_its_folder(member, tmp_path):
    place = archive(tmp_path / "a.tgz", {**member, "data/power/data.npy": b"1"})
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DataError, match="refused, since a member"):
        extract(place, ["power/data.npy"], out)
    assert {path.name for path in tmp_path.iterdir()} == {"a.tgz", "out"}


def test_damaged_and_incomplete_archives(tmp_path):
    place = archive(tmp_path / "a.tgz", {"data/power/data.npy": b"1" * 100_000})
    with pytest.raises(DataError, match=r"lacks gas/ethylene_CO\.pickle"):
        extract(place, ["gas/ethylene_CO.pickle"], tmp_path)
    for content in (place.read_bytes()[:-40], b"no archive", b""):
        place.write_bytes(content)
        with pytest.raises(DataError, match="cannot be unpacked"):
            extract(place, ["power/data.npy"], tmp_path)
