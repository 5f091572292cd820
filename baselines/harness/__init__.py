"""The evaluation harness: likelihood, sampling cost and depth of both families of flows."""
