"""The names of the operations by which a compiled program communicates between devices."""

import re

COLLECTIVE = re.compile(
    r"all-gather|all-reduce|all-to-all|collective-permute|collective-broadcast|reduce-scatter"
)
