"""Dropout in fine-tuning: rates in the body.

Like genre_head_rates.py, which has the settings, but with dropout in the body, at nanoGPT's four
sites.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # common

from common import claim
from genre_head_rates import RATES, compare_rates


def experiment(scale: claim.Scale) -> claim.Result:
    return compare_rates(scale, "body", {str(rate): (0.0, rate) for rate in RATES})


if __name__ == "__main__":
    claim.main(experiment, __doc__, __file__)
