"""The lecture's tables of one layer, with symbols and with numbers, from the operations themselves.

The lecture gives intensities as O(…) and then as numbers, 2730.7 for a linear layer: it drops every
constant, so that a tensor that is read and one that is written count once together, and divides by
elements instead of bytes. For two FLOPs a multiplication and two bytes an element the twos cancel;
the rest is off by up to the number of tensors of one size. `Row` holds both counts side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from llmcourse.costs.counting import Cost, count, letter_values
from llmcourse.costs.expression import Expression, number, ratio_latex, symbol
from llmcourse.costs.models import LLAMA_2_7B
from llmcourse.costs.operations import ZERO, Operation, layer_operations
from llmcourse.costs.shapes import BF16, Precision, Shapes, Step

LECTURE_PREFILL = Step.prefill(8, 1024, cache=False)
LECTURE_DECODE = Step.decode(8, 1024)
CIRCLED = "①②③④⑤⑥⑦⑧⑨⑩⑪⑫"


@dataclass(frozen=True)
class Row:
    """One operation of a layer.

    Attributes:
        number: ①, ②, … in the order of the layer.
        operation: names, formula, and every tensor that is moved.
        flops, read_elements, written_elements: in symbols, exact, with the letters of the step
            (T = 1 when decoding, N for Nkv without grouped queries, …).
        order: the lecture's O(…) in LaTeX, `-` where nothing is computed.
        lecture_intensity: that O(…) evaluated.
        cost: FLOPs and bytes, exact, and the true intensity.
    """

    number: str
    operation: Operation
    flops: Expression
    read_elements: Expression
    written_elements: Expression
    order: str
    lecture_intensity: float
    cost: Cost

    @property
    def name(self) -> str:
        return self.operation.name

    @property
    def formula(self) -> str:
        """In LaTeX."""
        return self.operation.formula


def layer_table(
    shapes: Shapes = LLAMA_2_7B,
    step: Step = LECTURE_PREFILL,
    precision: Precision = BF16,
    *,
    attention: str = "unfused",
) -> tuple[Row, ...]:
    """One row an operation. The defaults are the lecture's prefill; `LECTURE_DECODE` is its other step.

    B = 8, T = 1024, H = 4096, D = 128. The lecture names no H'; Llama-2-7B has 11008.
    """
    letters = lecture_letters(shapes, step)
    values = letter_values(shapes, step)
    operations = layer_operations(shapes, step, attention=attention)
    return tuple(
        _row(circled, operation, letters, values, precision)
        for circled, operation in zip(CIRCLED, operations, strict=False)
    )


def lecture_letters(shapes: Shapes, step: Step) -> dict[str, Expression]:
    """What to write for letters that say the same here: as many of the lecture's as fit.

    Its T is the new tokens in prefill, and the keys when one token is decoded.
    """
    letters = {}
    if step.past == 0:
        letters["S"] = symbol("T")
    elif step.new_tokens == 1:
        letters |= {"S": symbol("T"), "T": number(1)}
    width = symbol("H" if shapes.num_heads * shapes.head_dim == shapes.hidden_size else "Hq")
    letters["Hq"] = width
    if shapes.num_kv_heads == shapes.num_heads:
        letters |= {"Nkv": symbol("N"), "Hkv": width}
    return letters


def _row(circled: str, operation: Operation, letters: Mapping, values: Mapping, precision: Precision) -> Row:
    flops = operation.flops.substitute(letters)
    moved = (*operation.reads, *operation.writes)
    counted = sum((tensor.elements.substitute(letters) for tensor in moved if tensor.in_lecture), ZERO)
    order, intensity = "-", 0.0
    if flops != ZERO:
        order = f"O({ratio_latex(flops, counted)})"
        written = values | {"T": values["S"]} if letters.get("S") == symbol("T") else values
        ratio = Fraction(flops.without_constants().evaluate(written))
        intensity = float(ratio / counted.without_constants().evaluate(written))
    return Row(
        circled,
        operation,
        flops,
        operation.read_elements.substitute(letters),
        operation.written_elements.substitute(letters),
        order,
        intensity,
        count(operation, values, precision),
    )
