"""``python -m baselines.harness`` is the ``cflows`` command."""

from baselines.harness.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
