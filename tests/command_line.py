"""The ``cflows`` command in a test: run to its status, or to the one line of a refusal."""

from __future__ import annotations

import pytest

from baselines.harness import cli


def run(line: str, *arguments: object) -> int:
    """Run a command, whose first words may stand in one line; its exit status."""
    return cli.main([*line.split(), *map(str, arguments)])


def refused(
    capsys: pytest.CaptureFixture[str],
    line: str,
    *arguments: object,
    words: str | tuple[str, ...] = (),
    status: int = 2,
) -> str:
    """Run a command to one line of an error, which has these words, and return it."""
    with pytest.raises(SystemExit) as caught:
        run(line, *arguments)
    error = capsys.readouterr().err
    assert caught.value.code == status
    assert error.startswith("cflows: ")
    assert error.endswith("\n")
    assert error.count("\n") == 1
    for word in (words,) if isinstance(words, str) else words:
        assert word in error
    return error
