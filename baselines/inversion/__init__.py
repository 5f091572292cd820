"""Inverses that are computed: roots, degree sweeps, fixed points."""
