"""The command `minigpt`: main.py parses it, and each command has a file of its own."""
