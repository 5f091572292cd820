"""A package, so that a library that installs one of this name does not take its place."""
