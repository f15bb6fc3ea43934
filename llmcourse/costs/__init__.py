"""What an operation costs in FLOPs and bytes, before anything runs.

shapes       the model's shapes, the step it takes, the formats of its numbers
models       the shapes of Llama-3-8B, Llama-2-7B, Qwen3-0.6B and the embedded family
expression   counts as polynomials in B, T, H, …: readable, LaTeX, numbers
operations   the operations of a decoder, what each computes and moves, in symbols
counting     the same in numbers, for a layer and for a whole model
table        the lecture's tables ①, ②, …, with its intensities beside the exact ones
"""

from llmcourse.costs.counting import Cost, layer_costs, model_costs, num_parameters, total, weight_bytes
from llmcourse.costs.expression import SYMBOLS, Expression
from llmcourse.costs.models import LLAMA_2_7B, LLAMA_3_8B, MODELS, QWEN3_0_6B
from llmcourse.costs.shapes import BF16, ModelShapes, Precision, Shapes, Step
from llmcourse.costs.table import LECTURE_DECODE, LECTURE_PREFILL, Row, layer_table

__all__ = [
    "BF16",
    "LECTURE_DECODE",
    "LECTURE_PREFILL",
    "LLAMA_2_7B",
    "LLAMA_3_8B",
    "MODELS",
    "QWEN3_0_6B",
    "SYMBOLS",
    "Cost",
    "Expression",
    "ModelShapes",
    "Precision",
    "Row",
    "Shapes",
    "Step",
    "layer_costs",
    "layer_table",
    "model_costs",
    "num_parameters",
    "total",
    "weight_bytes",
]
