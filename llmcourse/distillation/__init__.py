"""A small model learns from a large one: from its answers, from what it thinks on the way, on its own text.

losses           the teacher's distribution as soft labels: forward KL, reverse KL, Jensen–Shannon
stored_teacher   the same with what can be kept of a teacher: its k likeliest tokens
layer_map        which layer learns from which, when there are not as many
features         hidden states, attention maps and value relations: taken out of a decoder, and compared
feature_loss     what is compared and how much it weighs, with the projections that are learned for it
on_policy        batches that the student writes itself, as it is by then
settings         what is to be learned, from whom and how
teacher          what the teacher says of a batch; `teacher_cache` keeps it on disk for further students
batches          what each step reads: text, or what the student writes
objective        the loss of a batch, and all that is trained by it
train            the trainer: one GPU or several (`shards`), resumable; `records` has a line for each step
students         a member of the family or another checkpoint, with new weights or as it is stored
text_at_hand     text with nothing to download
options          what the program asks on its command line
written          a student as a checkpoint, with its card
quality          what it has of its teacher in the end: divergence, agreement, acceptance, calibration
paired           kinds of training compared seed by seed
recorded         students as a study recorded them, and what each gains over its twin from scratch

All of it is one command; `python -m llmcourse.distillation --help` lists its options.
"""

from llmcourse.distillation.feature_loss import FeatureLoss, FeatureWeights
from llmcourse.distillation.features import LayerFeatures, read_features
from llmcourse.distillation.layer_map import LayerMap
from llmcourse.distillation.losses import (
    Response,
    forward_kl,
    hard_loss,
    jensen_shannon,
    response_loss,
    reverse_kl,
)
from llmcourse.distillation.on_policy import Writer, is_own_turn, own_labels
from llmcourse.distillation.paired import Paired, paired
from llmcourse.distillation.quality import Fidelity, calibration_error, measure
from llmcourse.distillation.settings import Distillation
from llmcourse.distillation.stored_teacher import TopK, stored_loss
from llmcourse.distillation.train import distill

__all__ = [
    "Distillation",
    "FeatureLoss",
    "FeatureWeights",
    "Fidelity",
    "LayerFeatures",
    "LayerMap",
    "Paired",
    "Response",
    "TopK",
    "Writer",
    "calibration_error",
    "distill",
    "forward_kl",
    "hard_loss",
    "is_own_turn",
    "jensen_shannon",
    "measure",
    "own_labels",
    "paired",
    "read_features",
    "response_loss",
    "reverse_kl",
    "stored_loss",
]
