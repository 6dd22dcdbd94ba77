"""Faulty models, written afresh from public reports: a file for each framework."""
