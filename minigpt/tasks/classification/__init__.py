"""Fine-tune a pretrained GPT as a text classifier: data, model, training, scores and report."""

from minigpt.tasks.classification.baselines import majority, tfidf
from minigpt.tasks.classification.classifier import TextClassifier, load
from minigpt.tasks.classification.data import (
    LabelledSplit,
    LabelledTexts,
    PaddedRows,
    count_cut,
    read_labelled,
)
from minigpt.tasks.classification.files import read_texts
from minigpt.tasks.classification.metrics import ClassificationScores, classification_scores
from minigpt.tasks.classification.predict import Prediction, predict_texts
from minigpt.tasks.classification.report import format_evaluation, print_report, save_report
from minigpt.tasks.classification.shakespeare_genres import load_genres
from minigpt.tasks.classification.train import PretrainedModel, audit_arguments, fit
