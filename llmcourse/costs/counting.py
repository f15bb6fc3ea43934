"""From symbols to numbers: what one step of one model costs in FLOPs and bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from llmcourse.costs.operations import (
    Moved,
    Operation,
    Store,
    layer_operations,
    model_operations,
)
from llmcourse.costs.shapes import BF16, Precision, Shapes, Step, check_at_least

OWNED: tuple[Store, ...] = ("weights", "head", "parameters")  # what belongs to the model


@dataclass(frozen=True)
class Cost:
    """FLOPs and bytes of one or more operations; costs add up.

    Attributes:
        name: of the operation, or of what is summed.
        matmul_flops: of matrix products, as PyTorch's FlopCounterMode counts.
        other_flops: of the rest.
        read_bytes, write_bytes: all that is moved; of it
        weight_bytes: what belongs to the model (norms, rows of the embedding, the head included), and
        cache_bytes: keys and values in the cache, read and written. The rest are activations.
        repeats: how often the operation runs; all figures are of all runs.
    """

    name: str
    matmul_flops: int
    other_flops: int
    read_bytes: int
    write_bytes: int
    weight_bytes: int = 0
    cache_bytes: int = 0
    repeats: int = 1

    @property
    def flops(self) -> int:
        return self.matmul_flops + self.other_flops

    @property
    def traffic_bytes(self) -> int:
        return self.read_bytes + self.write_bytes

    @property
    def intensity(self) -> float:
        """FLOPs for each byte moved; 0 where nothing is moved."""
        return self.flops / self.traffic_bytes if self.traffic_bytes else 0.0

    def __mul__(self, times: int) -> Cost:
        """The same operation run `times` times, at least once.

        Raises:
            ValueError: it is not run.
        """
        check_at_least("times", times, 1)
        figures = {name: getattr(self, name) * times for name in _FIGURES}
        return Cost(self.name, **figures, repeats=self.repeats * times)


_FIGURES = ("matmul_flops", "other_flops", "read_bytes", "write_bytes", "weight_bytes", "cache_bytes")


def total(costs: Iterable[Cost], name: str = "total") -> Cost:
    """The sum, under a name."""
    costs = tuple(costs)
    return Cost(name, **{figure: sum(getattr(cost, figure) for cost in costs) for figure in _FIGURES})


def layer_costs(
    shapes: Shapes,
    step: Step,
    precision: Precision = BF16,
    *,
    attention: str = "fused",
    skip_masked: bool = False,
) -> tuple[Cost, ...]:
    """Every operation of one decoder layer; arguments as `operations.layer_operations`."""
    operations = layer_operations(shapes, step, attention=attention, skip_masked=skip_masked)
    values = letter_values(shapes, step)
    return tuple(count(operation, values, precision) for operation in operations)


def model_costs(
    shapes: Shapes,
    step: Step,
    precision: Precision = BF16,
    *,
    attention: str = "fused",
    skip_masked: bool = False,
) -> tuple[Cost, ...]:
    """Every operation of the whole model, those of a layer once for all layers."""
    operations = model_operations(shapes, step, attention=attention, skip_masked=skip_masked)
    return repeated_costs(operations, shapes, step, precision)


def repeated_costs(
    operations: Iterable[tuple[int, Operation]], shapes: Shapes, step: Step, precision: Precision = BF16
) -> tuple[Cost, ...]:
    """Each operation as often as it runs: all of `operations.model_operations`, or some."""
    values = letter_values(shapes, step)
    return tuple(count(operation, values, precision) * times for times, operation in operations)


def letter_values(shapes: Shapes, step: Step) -> dict[str, int]:
    """The value of every letter of `expression.SYMBOLS`."""
    return {
        "B": step.batch,
        "T": step.new_tokens,
        "L": step.logits,
        "S": step.keys,
        "H": shapes.hidden_size,
        "H′": shapes.intermediate_size,
        "Hq": shapes.num_heads * shapes.head_dim,
        "Hkv": shapes.num_kv_heads * shapes.head_dim,
        "N": shapes.num_heads,
        "Nkv": shapes.num_kv_heads,
        "D": shapes.head_dim,
        "V": shapes.vocab_size,
    }


def count(operation: Operation, values: Mapping[str, int], precision: Precision = BF16) -> Cost:
    """The numbers of one operation, run once."""

    def num_bytes(moved: Moved) -> int:
        return precision.num_bytes(moved.store, moved.elements.evaluate(values))

    reads = [(moved.store, num_bytes(moved)) for moved in operation.reads]
    writes = [(moved.store, num_bytes(moved)) for moved in operation.writes]
    return Cost(
        operation.name,
        matmul_flops=operation.matmul_flops.evaluate(values),
        other_flops=operation.other_flops.evaluate(values),
        read_bytes=sum(size for _, size in reads),
        write_bytes=sum(size for _, size in writes),
        weight_bytes=sum(size for store, size in reads if store in OWNED),
        cache_bytes=sum(size for store, size in reads + writes if store == "cache"),
    )


def num_parameters(shapes: Shapes) -> int:
    """Trained numbers of the model; tied embeddings count once."""
    return sum(times * elements for times, _, elements in _parameters(shapes))


def weight_bytes(shapes: Shapes, precision: Precision = BF16) -> int:
    """Memory that the model's weights take, scales included."""
    return sum(times * precision.num_bytes(store, elements) for times, store, elements in _parameters(shapes))


def _parameters(shapes: Shapes) -> list[tuple[int, Store, int]]:
    """Every tensor of weights, and how often there is one like it: what the operations read of them, and the
    whole of the embedding."""
    step = Step.decode(1, 1)
    values = letter_values(shapes, step)
    found: list[tuple[int, Store, int]] = []
    if not shapes.tie_word_embeddings:
        found.append((1, "parameters", shapes.vocab_size * shapes.hidden_size))
    for times, operation in model_operations(shapes, step)[1:]:  # the first looks rows of the embedding up
        owned = (moved for moved in operation.reads if moved.store in OWNED)
        found += [(times, moved.store, moved.elements.evaluate(values)) for moved in owned]
    return found
