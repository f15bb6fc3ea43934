"""What `few_rows_variants.py` tries: of which models, and how each of their matrices may be cut.

Rings and strips about as large as shared memory lets two programs on a multiprocessor have; those for one
token of the target also as `Tile`, which the kernel in Triton takes. For dozens of rows some leave room for
nobody else: more bytes are then under way, but nothing of the next kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from large_models import CONFIGS
from train_target import TARGET, WIDE

from llmcourse.kernels.linear import AnyTile
from llmcourse.kernels.split_rings import SplitRing
from llmcourse.kernels.tiles import Ring, Strip, Tile
from llmcourse.model import DecoderConfig

Shape = tuple[int, int, bool]  # outputs, inputs, gated


def rings(*numbers: tuple[int, ...]) -> tuple[Ring, ...]:
    return tuple(Ring(*one) for one in numbers)


def shared(*numbers: tuple[int, ...]) -> tuple[SplitRing, ...]:
    return tuple(SplitRing(*one) for one in numbers)


def strips(*numbers: tuple[int, int], tensor_cores: bool = True) -> tuple[Strip, ...]:
    return tuple(Strip(*one, tensor_cores) for one in numbers)


def tiles(*numbers: tuple[int, int, int]) -> tuple[Tile, ...]:
    return tuple(Tile(*one) for one in numbers)


CHAINS: dict[Shape, tuple[Ring, ...]] = {
    (14336, 4096, True): rings(
        (32, 128, 5), (32, 256, 3, 8), (32, 256, 5, 8), (16, 256, 5), (64, 128, 2, 8), (64, 128, 3, 8),
        (64, 128, 5, 8), (64, 128, 6, 8), (64, 64, 5), (64, 256, 3, 8), (64, 256, 2, 8), (128, 128, 3, 8),
        (128, 64, 5, 8), (128, 64, 6, 8), (64, 64, 12),
    ),
    (4096, 14336, False): rings(
        (32, 128, 10), (32, 256, 4), (32, 256, 4, 8), (32, 256, 5, 8), (32, 256, 8, 8), (16, 256, 8),
        (16, 512, 4), (16, 512, 4, 8), (32, 512, 4, 8), (32, 128, 16),
    ),
    (6144, 4096, False): rings(
        (32, 128, 10), (32, 256, 4, 8), (32, 256, 5, 8), (32, 256, 3, 8), (16, 256, 5), (64, 128, 5, 8),
        (64, 256, 3, 8), (64, 128, 6, 8), (64, 128, 10, 8), (64, 64, 10),
    ),
    (4096, 4096, False): rings(
        (32, 128, 10), (32, 256, 4, 8), (32, 256, 5, 8), (16, 256, 8), (16, 512, 4, 8), (32, 256, 8, 8),
        (32, 128, 16), (8, 512, 5),
    ),
    (128256, 4096, False): rings(
        (64, 128, 5), (64, 128, 5, 8), (64, 256, 3, 8), (128, 128, 3, 8), (128, 64, 5, 8), (32, 256, 5, 8),
        (128, 128, 5, 8), (64, 128, 6, 8),
    ),
}  # fmt: skip

# By arithmetic. A step of 64 columns takes a program of 128 rows 0.2 µs or so, the tensor cores 0.15 of them.
# Memory needs 0.45 µs for its 16 kB on each of 132 multiprocessors: with 128 programs that is waited for. So
# there remain the two ends of a kernel of 8 to 30 µs. Before the first step x is on its way for 1 to 2 µs,
# and where columns are shared the last program has 3 to 4 µs to do; in both the first tiles of the next
# kernel come, 64 to 80 kB a program, if it finds room. So nearly all leave it that room; they differ in how
# much of it x has, in 64 or 128 rows, and in how many share.
SHARED: dict[Shape, tuple[SplitRing, ...]] = {
    (6144, 4096, False): shared(
        (128, 64, 5, 3, 2), (128, 64, 5, 3, 3), (128, 64, 5, 3, 4), (128, 64, 4, 5, 4), (128, 64, 5, 3, 3, 4),
        (64, 64, 9, 4, 2, 4), (64, 64, 9, 4, 1, 4), (128, 64, 8, 6, 2),
    ),
    (4096, 4096, False): shared(
        (128, 64, 5, 4, 4), (128, 64, 4, 6, 4), (128, 64, 5, 4, 2), (128, 64, 5, 4, 8), (64, 64, 9, 5, 2, 4),
        (64, 64, 8, 6, 4, 4), (64, 64, 9, 5, 1, 4), (32, 64, 16, 6, 1, 4),
    ),
    (14336, 4096, True): shared(
        (64, 64, 5, 3, 1, 4), (64, 64, 4, 5, 1, 4), (64, 64, 5, 3), (64, 64, 4, 5), (64, 128, 2, 2, 1, 4),
        (128, 64, 5, 3), (32, 64, 9, 4, 1, 4),
    ),
    (4096, 14336, False): shared(
        (128, 64, 5, 4, 4), (128, 64, 4, 6, 4), (128, 64, 5, 4, 8), (128, 64, 9, 8, 4), (64, 64, 9, 5, 2, 4),
        (64, 64, 9, 5, 4, 4), (64, 64, 8, 6, 4, 4), (64, 64, 9, 5, 3, 4),
    ),
    (128256, 4096, False): shared(
        (128, 64, 5, 3), (128, 64, 4, 5), (128, 64, 5, 3, 1, 4), (128, 64, 4, 5, 1, 4), (256, 64, 5, 3),
        (64, 64, 9, 4, 1, 4), (128, 128, 2, 2, 1, 4),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Pass:
    """What is timed of a model, and how each of its matrices may be cut.

    Attributes:
        unit: "ms" or "us".
        num_tokens: of the text, in one pass; for one it is a step of decoding.
        position: of the last of them.
        capacity: of the cache, in tokens.
    """

    what: str
    unit: str
    config: DecoderConfig
    num_tokens: int
    position: int
    capacity: int
    candidates: Mapping[Shape, Sequence[AnyTile]]


LLAMA = Pass(  # its candidates come of the chains
    "8 tokens, 8 layers and head of llama3_8b",
    "ms", replace(CONFIGS["llama3_8b"], num_layers=8), 8, 228, 328, {},
)  # fmt: skip
DOZENS = {  # the same for more tokens: as many as a tree of drafts has, and half of them
    f"rows{tokens}": replace(
        LLAMA, what=f"{tokens} tokens, 8 layers and head of llama3_8b", num_tokens=tokens
    )
    for tokens in (64, 32)
}
PASSES = {
    "rows16": Pass(
        "16 tokens, the wide target of train_target.py",
        "us", WIDE.model, 16, 300, 512,
        {
            (14336, 4096, True): rings((128, 128, 3, 8), (64, 128, 3, 8), (64, 64, 5)),
            (4096, 14336, False): rings((16, 512, 4), (32, 256, 5, 8), (32, 128, 10)),
            (6144, 4096, False): rings((32, 256, 4, 8), (32, 128, 10), (64, 128, 5, 8)),
            (4096, 4096, False): rings((32, 128, 16), (32, 256, 5, 8), (16, 256, 8)),
            (12288, 4096, False): rings((64, 128, 5), (64, 128, 6, 8), (128, 128, 3, 8), (32, 256, 5, 8)),
        },
    ),
    "qwen3_0.6b": Pass(
        "7 tokens, 20 layers of the shape of qwen3_0.6b, head of 12,288",
        "us", replace(CONFIGS["qwen3_0.6b"], num_layers=20, vocab_size=12288), 7, 300, 512,
        {
            (3072, 1024, True): strips((8, 4), (16, 4), (16, 8), (32, 4)),
            (4096, 1024, False): strips((8, 4), (16, 4), (8, 8), (16, 8), (32, 4), (32, 8), (64, 4)),
            (1024, 3072, False): strips((8, 4), (16, 4), (8, 8), (16, 8)),
            (1024, 2048, False): strips((8, 4), (16, 4), (8, 8), (16, 8), (32, 4), (32, 8)),
            (12288, 1024, False): strips((8, 4), (16, 4), (8, 8), (16, 8), (32, 4), (32, 8), (64, 4)),
        },
    ),
    "target": Pass(
        "7 tokens, the target of train_target.py",
        "us", TARGET, 7, 300, 512,
        {
            (6144, 2048, True): (
                *strips((8, 4), (8, 8), (16, 4), (16, 8)),
                *rings((16, 256, 5), (32, 128, 5), (64, 64, 5), (32, 256, 3, 8), (64, 128, 3, 8)),
            ),
            (2048, 6144, False): (
                *strips((8, 4), (8, 8)),
                *rings((16, 256, 8), (16, 512, 4), (16, 512, 4, 8), (8, 512, 5), (32, 256, 5, 8)),
            ),
            (3072, 2048, False): (
                *strips((8, 4), (16, 4), (16, 8), (32, 4), (32, 8)), *rings((32, 256, 4, 8), (32, 128, 8)),
            ),
            (2048, 2048, False): (
                *strips((8, 4), (16, 4), (16, 8), (32, 8)), *rings((16, 256, 8), (32, 128, 8)),
            ),
            (12288, 2048, False): (
                *strips((16, 4), (32, 4), (32, 8)), *rings((64, 128, 5), (32, 256, 5, 8)),
            ),
        },
    ),
    "one": Pass(
        "one token, the target of train_target.py",
        "us", TARGET, 1, 300, 512,
        {
            (6144, 2048, True): (
                *strips((8, 4), (8, 8)), *strips((8, 8), tensor_cores=False),
                *tiles((2, 2048, 4), (4, 2048, 8), (4, 1024, 4)),
            ),
            (2048, 6144, False): (
                *strips((8, 4), (16, 8)), *strips((8, 8), tensor_cores=False),
                *tiles((1, 2048, 4), (2, 2048, 4), (4, 2048, 8)),
            ),
            **{
                (outputs, 2048, False): (
                    *strips((8, 4), (16, 4)), *strips((8, 8), (16, 8), tensor_cores=False),
                    *tiles((4, 2048, 4), (2, 2048, 4)),
                )
                for outputs in (3072, 2048)
            },
            (12288, 2048, False): (
                *strips((8, 4), (16, 4)), *strips((16, 8), tensor_cores=False),
                *tiles((8, 2048, 8), (4, 2048, 4)),
            ),
        },
    ),
}  # fmt: skip
