"""The uncertainty of a model about every character of a text: estimate it and display it."""

from minigpt.tasks.uncertainty.estimate import (
    stochastic_logits,
    text_uncertainty,
    token_uncertainty,
)
from minigpt.tasks.uncertainty.render import color_scale_max, print_colored, require_top, to_html
