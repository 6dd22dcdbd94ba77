"""Code that several experiments use; the experiments are the scripts of the other folders."""
