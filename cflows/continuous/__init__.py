"""Continuous flows: fields, divergences, solvers."""
