"""One process of many: `python host.py FILE train ...` writes the rows it reads into FILE."""

import json
import sys

import minigpt.loop
from minigpt import cli
from minigpt.data.batches import windows


def main():
    with open(sys.argv[1], "a") as file:

        def written(tokens, starts, block_size):
            file.write(json.dumps([int(start) for start in starts]) + "\n")
            file.flush()
            return windows(tokens, starts, block_size)

        minigpt.loop.windows = written
        cli.main(sys.argv[2:])


if __name__ == "__main__":
    main()
