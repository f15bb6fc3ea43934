"""Fewer bits for weights, activations and caches: from rounding to layers that a model runs on.

quantized_tensor  integer codes of a matrix, their scales and zero points: what every method below gives
"""
