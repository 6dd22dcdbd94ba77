"""`python -m minigpt`: the command line."""

from minigpt.cli.main import main

main()
