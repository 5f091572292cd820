"""The asv suite: what the parts of the package cost, and counts that no machine changes."""

import torch

# Both are imported at their first use; here once, and not by each of asv's processes.
import torch._dynamo
import torchdiffeq  # noqa: F401

torch.set_num_threads(1)
