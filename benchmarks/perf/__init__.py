"""The asv suite: what the parts of the package cost, and counts that no machine changes."""

import torch

torch.set_num_threads(1)
