"""Fewer bits for weights, activations and caches: from rounding to layers that a model runs on.

quantized_tensor  integer codes of a matrix, their scales and zero points: what every method below gives
grid, ranges      evenly spaced numbers for a range; ranges by min–max, percentile, least squared error
affine            quantize, dequantize and the error, by tensor, channel, token or group; weights by rounding
packing           codes of 2 to 8 bits in bytes or 32-bit words, without gaps
formats           points that are not evenly spaced: FP8 e4m3 and e5m2, NF4, MXFP4
"""
