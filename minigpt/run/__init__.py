"""run: directory, parent, metrics."""
