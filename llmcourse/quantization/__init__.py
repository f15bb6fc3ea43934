"""Fewer bits for weights, activations and caches: from rounding to layers that a model runs on.

quantized_tensor  integer codes of a matrix, their scales and zero points: what every method below gives
grid, ranges      evenly spaced numbers for a range; ranges by min–max, percentile, least squared error
affine            quantize, dequantize and the error, by tensor, channel, token or group; weights by rounding
packing           codes of 2 to 8 bits in bytes or 32-bit words, without gaps
formats           points that are not evenly spaced: FP8 e4m3 and e5m2, NF4, MXFP4
lecture_example   the lecture's six numbers in int8, and which way Z points
cache             a KV cache in 2 to 8 bits, for decoding as it is
cache_error       what that does to keys, values, attention and the next token
calibration       what layers read while a model runs over real text: 2 XᵀX and magnitudes by channel
hessian           the error of an output as a quadratic form, and the factor of its inverse
gptq              columns one by one, those still free making up for the error of each
channel_scales    channels that are divided here and multiplied there, the function staying what it is
awq               so that weights which meet large activations are rounded more finely
smooth_quant      so that activations with outliers can be rounded to 8 bits
outliers          which channels are some, models that have more of them, and what they cost
schemes           names of the field, and what each makes of weights and inputs
layers            layers in few bits within a model: put in, found, told what to run by
fake_quant        weights that are rounded on the way forward and trained: quantization-aware training
models            `quantize(model, scheme, calibration)`: a decoder in few bits, which engines run as any
compressed_*      what `config.json` says of it, and its tensors, in the layouts of compressed-tensors
stored            quantized models as checkpoints: save, load, and what the device cannot run
texts             text of three domains with nothing to download
quality           what it costs: perplexity, KL and greedy agreement by domain, with spread
"""

from llmcourse.decoding.estimate import Estimate
from llmcourse.quantization.layers import ReferenceWarning, choose_backend, quantized_layers
from llmcourse.quantization.models import quantize
from llmcourse.quantization.quality import Quality, compare
from llmcourse.quantization.schemes import SCHEMES, Scheme, scheme_of
from llmcourse.quantization.stored import describe, is_quantized, load, save

__all__ = [
    "SCHEMES",
    "Estimate",
    "Quality",
    "ReferenceWarning",
    "Scheme",
    "choose_backend",
    "compare",
    "describe",
    "is_quantized",
    "load",
    "quantize",
    "quantized_layers",
    "save",
    "scheme_of",
]
