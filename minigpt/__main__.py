"""`python -m minigpt`: the command line."""

from minigpt.cli.main import run_as_process

run_as_process()
