"""Triton kernels, each beside a reference of a few lines that says what it computes.

backend           which of the two runs: `backend="auto" | "triton" | "reference"`
arguments         what a kernel takes for granted of what it is given, checked before it is launched
launch            programmatic dependent launch, and prefetching ahead of it
linear            norm, matrix, bias, SwiGLU and residual in one kernel, for few rows
tiles             the tile shapes of `linear` that were measured to be best
blas              on a CPU: how matrices lie, and a single row multiplied by several cores
decode_attention  RoPE, cache write and attention of one new token a row
tokens            embedding lookup, greedy choice and sampling, all on the device

Nothing here is needed on a machine without Triton: the references run everywhere. Triton is
imported here and nowhere else in the package.
"""
