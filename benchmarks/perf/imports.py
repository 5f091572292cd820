"""Import of the packages, in processes of their own; torch alone is the yardstick."""

from __future__ import annotations


class Import:
    """Each includes torch: subtract ``torch``."""

    number = 1  # a second import in the same process is none
    timeout = 120

    def timeraw_torch(self) -> str:
        """``import torch``."""
        return "import torch"

    def timeraw_cflows(self) -> str:
        """``import cflows``."""
        return "import cflows"

    def timeraw_baselines(self) -> str:
        """``import baselines``, which imports cflows."""
        return "import baselines"

    def timeraw_command(self) -> str:
        """What the ``cflows`` command imports before it reads its arguments."""
        return "import baselines.harness.cli"
