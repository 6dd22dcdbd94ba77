"""What the experiments share; the scripts beside this folder are the experiments."""
