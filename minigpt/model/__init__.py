"""The GPT in flax.nnx, its dropout sites, and text generation."""

from minigpt.model.dropout_sites import CaptureAll, DropoutSite, SiteSpec, draw_masks, site_specs
from minigpt.model.generate import (
    GenerationSteps,
    Window,
    build_generation_steps,
    default_prompt,
    generate_ids,
)
from minigpt.model.gpt import GPT, set_rates
from minigpt.model.lora import merge_lora, split_lora
from minigpt.model.trained import join_trained, split_trained, trains_all
