"""Which layer of the student learns from which of the teacher, when they have not as many.

    uniform    n → n · L_t / L_s        the whole depth        Jiao et al. 2020 (TinyBERT), section 3.1
    skip       n → n · (L_t div L_s)    without the last       Sun et al. 2019 (PKD-Skip), section 3.2
    tail       n → L_t − L_s + n        without the last       the same, PKD-Last
    last       L_s → L_t                the last alone         Wang et al. 2020 (MiniLM), section 3

The last layer of a student learns from the response anyway: PKD leaves it out here.
Layers are counted from 1, as early exit counts them: n is what there is after n layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

from llmcourse.decoding.errors import require, require_integer


@dataclass(frozen=True)
class LayerMap:
    """Pairs (student's layer, teacher's layer), in the order of the student's.

    Raises:
        TypeError: something else than pairs of numbers.
        ValueError: no pair, a layer below 1, or a layer of the student that has two teachers.
    """

    pairs: Sequence[Sequence[int]]  # tuples, once it is made

    def __post_init__(self):
        pairs = _as_pairs(self.pairs)
        require(len(pairs) > 0, "layer map", "of at least one pair", "none", "LayerMap(((1, 2),)) is one")
        for student, teacher in pairs:
            require_integer(1, "student's layer", student, "layers are counted from 1")
            require_integer(1, "teacher's layer", teacher, "layers are counted from 1")
        students = [student for student, _ in pairs]
        twice = next((layer for layer in students if students.count(layer) > 1), None)
        require(twice is None, "student's layers", "each there once", f"{twice} twice", "give it one teacher")
        object.__setattr__(self, "pairs", tuple(sorted(pairs)))

    @classmethod
    def uniform(cls, student_layers: int, teacher_layers: int) -> LayerMap:
        """n → n · L_t / L_s, rounded up: the last layer's teacher is the last."""
        _check_depths(student_layers, teacher_layers)
        ceiling = lambda n: -(-n * teacher_layers // student_layers)  # noqa: E731
        return cls(tuple((n, ceiling(n)) for n in range(1, student_layers + 1)))

    @classmethod
    def skip(cls, student_layers: int, teacher_layers: int) -> LayerMap:
        """n → n · (L_t div L_s), without the student's last layer."""
        _check_depths(student_layers, teacher_layers, least=2)
        every = max(1, teacher_layers // student_layers)
        return cls(tuple((n, min(n * every, teacher_layers)) for n in range(1, student_layers)))

    @classmethod
    def tail(cls, student_layers: int, teacher_layers: int) -> LayerMap:
        """n → L_t − L_s + n, without the student's last layer."""
        _check_depths(student_layers, teacher_layers, least=2)
        before = teacher_layers - student_layers
        remedy = "take uniform, which repeats layers of the teacher"
        require(before >= 0, "student_layers", f"at most {teacher_layers}", student_layers, remedy)
        return cls(tuple((n, before + n) for n in range(1, student_layers)))

    @classmethod
    def last(cls, student_layers: int, teacher_layers: int) -> LayerMap:
        """The last layer from the last."""
        _check_depths(student_layers, teacher_layers)
        return cls(((student_layers, teacher_layers),))

    @property
    def student_layers(self) -> tuple[int, ...]:
        return tuple(student for student, _ in self.pairs)

    @property
    def teacher_layers(self) -> tuple[int, ...]:
        """Those that are read, each once and in order."""
        return tuple(sorted({teacher for _, teacher in self.pairs}))

    def check(self, student_layers: int, teacher_layers: int) -> None:
        """Refuses a map that points nowhere.

        Args:
            student_layers, teacher_layers: how many layers they have.

        Raises:
            ValueError: a layer that the student or the teacher has not.
        """
        for pair in self.pairs:
            remedy = f"the pair {pair} points nowhere; take another, or LayerMap.uniform"
            for whose, layer, count in zip(
                ("student's", "teacher's"), pair, (student_layers, teacher_layers), strict=True
            ):
                require(layer <= count, f"{whose} layer", f"in [1, {count}]", layer, remedy)


def _as_pairs(pairs: object) -> list[tuple[int, int]]:
    """As tuples: what was read from a file will do."""
    whole = lambda layer: isinstance(layer, Integral) and not isinstance(layer, bool)  # noqa: E731
    holds = isinstance(pairs, Sequence) and all(
        isinstance(pair, Sequence) and len(pair) == 2 and all(map(whole, pair)) for pair in pairs
    )
    if not holds:
        raise TypeError(
            f"pairs must be of layers (student's, teacher's), got {pairs!r}; ((1, 2), (2, 4)) are two"
        )
    return [(int(student), int(teacher)) for student, teacher in pairs]


def _check_depths(student_layers: int, teacher_layers: int, least: int = 1) -> None:
    remedy = "a map that leaves the last layer out needs another" if least > 1 else "a decoder has some"
    require_integer(least, "student_layers", student_layers, remedy)
    require_integer(1, "teacher_layers", teacher_layers, "a decoder has some")
