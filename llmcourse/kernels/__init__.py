"""Triton kernels, each beside a reference of a few lines that says what it computes.

backend           which of the two runs: `backend="auto" | "triton" | "reference"`
arguments         what a kernel takes for granted of what it is given, checked before it is launched
capabilities      what the GPU at hand, and this Triton, can do
launch            programmatic dependent launch: a kernel starts before its input is there
linear            norm, matrix, bias, SwiGLU and residual in one kernel, for few rows; on Hopper in bfloat16
                  `linear_gluon` for one, `linear_rows_gluon` and `linear_rows_strip_gluon` for up to eight,
                  `linear_split_gluon` for dozens in a pass over several tokens, with its consumers beside it
quantized_linear  what layers in few bits have in common, whatever their format, and how engines stack them
packed_linear     layers of packed codes of 4 or 8 bits, which lie as `packed_words` says; on Hopper by
                  `packed_gluon`, with its consumers beside it in `packed_consumer_gluon`; their operands
                  `packed_codes_gluon` makes of codes, and they end with `packed_end_gluon`; `packed_tiles`
                  says how matrices are cut
gptq_block        a block of columns of a matrix, rounded one after the other as GPTQ does
scaled_linear     layers of codes that are multiplied by codes, with a scale for each row of both
int8_linear       activations in int8 too: `quantize_rows` on the way in, `int8_matmul` with all that
                  dequantizes; `mixed_linear` keeps the columns of `outlier_columns` in 16 bits (LLM.int8()),
                  `fp8_linear` multiplies in e4m3; `int8_tiles` says how products are cut
tiles             how the kernels cut their matrices and caches: what was measured to be best; `split_rings`
                  for dozens of rows
blas              on a CPU: how matrices lie, and a single row multiplied by several cores
decode_attention  RoPE, cache write and attention of one new token a row
append_attention  the same of several new tokens a row, as drafts are verified; in a tree by `tree_mask`
flash_attention   attention of many queries at once, by tiles, and its gradients; `flash_attention_varlen`
                  of sequences that lie packed, `flash_arguments` says what both refuse; on Hopper
                  `flash_attention_gluon` and `flash_backward_gluon` compute plain calls
*_triton, *_gluon the kernels of these: readable first; and, where a chain of short kernels must not let the
                  memory stand idle, by the lower floor of Triton, with shared memory in the writer's hands
online_softmax    the step that the kernels of attention have in common
paged_attention   attention over a cache in blocks, for requests with one new token or many
paged_decode      the same with RoPE and cache write, where every request has one new token
tokens            embedding lookup, greedy choice and sampling, all on the device
drafts            the same of a window of tokens, and which of them stand; `drawn_drafts` if they were drawn,
                  `draft_trees` if they branch, `ranked_drafts` where heads guess them, whose blocks
                  `silu_residual` ends
vocabulary_divergence
                  a student's loss beside its teacher, and its gradients, chunk by chunk of the logits;
                  `divergence_arguments` says what it is asked for, and what is refused

Nothing here is needed on a machine without Triton: the references run everywhere. Triton is
imported here and nowhere else in the package.
"""
