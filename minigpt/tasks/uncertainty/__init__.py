"""How uncertain a model is of every character of a text: estimated, and shown."""

from minigpt.tasks.uncertainty.estimate import (
    stochastic_logits,
    text_uncertainty,
    token_uncertainty,
)
from minigpt.tasks.uncertainty.render import color_scale_max, print_colored, to_html
