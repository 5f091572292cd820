"""A comparison: its plan, its cells, their run."""
