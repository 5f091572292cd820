"""Training: rows, the loop, checkpoints, and what stands in front of a flow."""

from cflows.training.fit import fit as fit
