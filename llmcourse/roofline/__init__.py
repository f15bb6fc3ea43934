"""The limit of a machine for a model: how fast it can be, and whether it fits.

limits       ridge, roof, least time and bound of an operation, a layer, a step
memory       weights, cache and activations against what is free
"""

from llmcourse.roofline.limits import (
    Limits,
    Prediction,
    StepPrediction,
    attainable,
    misread_ridge,
    predict,
    predict_all,
    predict_step,
    ridge,
    turning_batch,
)
from llmcourse.roofline.memory import (
    DoesNotFit,
    Memory,
    check_fits,
    check_weights_fit,
    kv_bytes_per_token,
    largest_batch,
    largest_context,
    memory_needed,
)

__all__ = [
    "DoesNotFit",
    "Limits",
    "Memory",
    "Prediction",
    "StepPrediction",
    "attainable",
    "check_fits",
    "check_weights_fit",
    "kv_bytes_per_token",
    "largest_batch",
    "largest_context",
    "memory_needed",
    "misread_ridge",
    "predict",
    "predict_all",
    "predict_step",
    "ridge",
    "turning_batch",
]
