"""The fast decode path: static shapes, fused matrices, one CUDA graph a step, no host in the loop.

weights     the matrices of a `Decoder`, fused once: tensors, or layers in few bits
prefill     prompts into the memory of the steps, by the ordinary model
step        one token through all layers, by the kernels or by their references
window      several tokens of each row through all layers, as drafts are verified
graphs      a step recorded once and replayed
engine      `DecodeEngine`: prefill with the ordinary model, then step after step; it is a `LogitsSource`
"""

from llmcourse.decoding.engine.engine import DecodeEngine

__all__ = ["DecodeEngine"]
