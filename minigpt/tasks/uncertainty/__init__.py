"""tasks: classification, uncertainty, replay."""
