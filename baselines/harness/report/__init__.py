"""Tables and pages from a directory of cells."""
