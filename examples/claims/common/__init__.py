"""What the experiments share; the scripts of the folders beside this one are the experiments."""
