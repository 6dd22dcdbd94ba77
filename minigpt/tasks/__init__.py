"""What is done with a trained run besides training: classification, uncertainty, replay."""
