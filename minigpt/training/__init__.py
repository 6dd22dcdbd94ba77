"""Training: the training loop, the training step, the optimizer and evaluation."""

from minigpt.training.dropout_schedule import scheduled_rates
from minigpt.training.evaluate import Evaluation, estimate_loss, evaluate_answers, evaluate_text
from minigpt.training.finetune import finetune_defaults
from minigpt.training.optimizer import build_optimizer, learning_rate_schedule
from minigpt.training.overfitting import is_past_its_best
from minigpt.training.plan import TrainPlan, plan_training
from minigpt.training.run_choice import claim_run_dir
from minigpt.training.start import TrainedRun, start_training
from minigpt.training.throughput import flops_per_token
from minigpt.training.train_step import (
    RATE_PREFIX,
    CompiledSteps,
    TrainState,
    abstract_train_inputs,
    build_abstract_train_functions,
    build_train_functions,
    initial_state,
    make_train_batch,
    token_losses,
)
from minigpt.training.trainer import train
