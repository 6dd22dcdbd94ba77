"""The pages of docs/ that the results of the experiments write: claims, chapters, applications."""
