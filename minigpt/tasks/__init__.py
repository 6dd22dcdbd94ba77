"""Uses of a trained run: text classification, uncertainty of a text, replay of a step."""
