"""`python -m minigpt`: the command line."""

from minigpt.cli import main

main()
