"""A directory of cells, read and averaged."""
