"""One process of many: `python host.py FILE train ...` writes the rows it reads into FILE."""

import json
import sys

from minigpt.cli.main import main as minigpt
from minigpt.data import batches


def main():
    take_windows = batches.take_windows
    with open(sys.argv[1], "a") as file:

        def written(tokens, starts, block_size):
            file.write(json.dumps([int(start) for start in starts]) + "\n")
            file.flush()
            return take_windows(tokens, starts, block_size)

        batches.take_windows = written
        minigpt(sys.argv[2:])


if __name__ == "__main__":
    main()
