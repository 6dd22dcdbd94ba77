"""One process of many: `python host.py FILE train ...` writes the rows it reads into FILE."""

import json
import sys

import minigpt.training.trainer
from minigpt import cli
from minigpt.data.batches import take_windows


def main():
    with open(sys.argv[1], "a") as file:

        def written(tokens, starts, block_size):
            file.write(json.dumps([int(start) for start in starts]) + "\n")
            file.flush()
            return take_windows(tokens, starts, block_size)

        minigpt.training.trainer.take_windows = written
        cli.main(sys.argv[2:])


if __name__ == "__main__":
    main()
