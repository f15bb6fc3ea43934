"""The exercises of lab 5, a module each, named as the exercise is.

drawn                       what cases are drawn from: numbers whose codes do not turn on rounding
affine, per_channel         codes and back: a range and its zero point; a scale for each row
clip_range                  the range with the least error, where the largest number need not fit
pack_int4, unpack_int4      two codes a byte, and back
gptq_column, gptq           rounding that hands its error on: a column; all of them, by Cholesky
llm_int8                    outlier columns as they are, the rest in int8
programs                    answers that are programs, a line of which is changed
triton_int8                 a kernel of the student's own that multiplies codes
"""
