"""Monotone maps of one variable, whose parameters networks give."""
