"""Correct models, of every form: a file for each framework."""
