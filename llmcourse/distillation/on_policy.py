"""On-policy distillation: the student writes, and the teacher says at each token what it would have said.

Behind its own text is where a student will have to go on, and text that people wrote never shows what the
teacher does after the student's mistakes. So a share λ of the batches is written by the student, as it is by
then (Agarwal et al. 2024, GKD, section 3, algorithm 1):

    with chance λ   y ~ q(· | x), the student's own;      otherwise y of the data set
    loss            mean over the tokens of y of D(p(· | x, y_<n) ‖ q(· | x, y_<n))

D is any divergence of `losses`. No gradient goes through the draw of y. With reverse KL this is the part of
MiniLLM's gradient that looks at a single token (Gu et al. 2024, section 2.2); what a token does to all that
follow, for which MiniLLM takes policy gradients, is left out. Hard labels are of no use here: they would
teach the student that it was right.

x is how a row of the data set begins. What is learned is only what the student wrote behind it.
"""

from __future__ import annotations

import random

import torch
from jaxtyping import Int
from torch import Tensor

from llmcourse.decoding.engine import DecodeEngine
from llmcourse.decoding.errors import require, require_integer, require_number
from llmcourse.decoding.sampling import greedy, sample
from llmcourse.decoding.source import CachedLogits
from llmcourse.distillation.losses import IGNORED
from llmcourse.kernels.blas import Linear
from llmcourse.model import Decoder, SelfAttention, SwiGLU


def is_own_turn(step: int, share: int | float, *, seed: int = 0) -> bool:
    """Whether the student writes the batch of a step: drawn with chance λ, the same for the same step.

    Args:
        share: λ in [0, 1]: 0 never, 1 always.

    Raises:
        ValueError: a share out of its range.
    """
    remedy = "0 learns from the text alone, 1 from the student's own"
    require_number(lambda s: 0 <= s <= 1, "share", "in [0, 1]", share, remedy)
    return random.Random(f"{seed} {step}").random() < share


def own_labels(rows: Int[Tensor, "B T"], opening: int) -> Int[Tensor, "B T"]:
    """What is learned of rows that a student wrote: the token behind each.

    It is −100 where that token is one of the opening, which was given, and for the last, behind which the
    student did not go on.

    Args:
        opening: tokens of each row that were given, from 1 to T − 1.

    Raises:
        ValueError: it is out of its range.
    """
    most, remedy = rows.shape[1] - 1, "something has to be written"
    holds = lambda count: 1 <= count <= most  # noqa: E731
    require_number(holds, "opening", f"in [1, {most}]", opening, remedy, kind=int)
    labels = rows.roll(-1, 1).long()
    labels[:, : opening - 1] = IGNORED
    labels[:, -1] = IGNORED
    return labels


def write_reference(
    model: Decoder,
    openings: Int[Tensor, "B P"],
    length: int,
    *,
    temperature: int | float = 1.0,
    seed: int = 0,
) -> Int[Tensor, "B T"]:
    """How a model goes on, until rows are of this length, the openings among them: without a cache.

    Tokens that end a text are tokens like others. Arguments and errors as `Writer.write`.
    """
    _check(model, openings, length, temperature)
    draws, text = torch.Generator().manual_seed(seed), openings
    with torch.no_grad():
        while text.shape[1] < length:
            text = torch.cat((text, _next(model(text)[:, -1], temperature, draws)), 1)
    return text


class Writer:
    """Writes what a student would, as it is now, though it is being trained.

    An engine runs on a copy that is given the student's weights before each batch: in bfloat16 on a GPU, with
    memory and recordings that stay. A student with layers of another kind, as fake-quantized ones, writes
    itself, with a cache.

    Args:
        student: whose weights may lie in parts on several processes; then all have to write together.
    """

    def __init__(self, student: Decoder):
        self._student = student
        self._engine: DecodeEngine | None = None
        if is_plain(student):
            on_gpu = student.device.type == "cuda"
            with torch.random.fork_rng(devices=()):  # nothing of a training is to depend on who wrote when
                copy = Decoder(student.config, student.attention)
            copy.to(student.device, torch.bfloat16 if on_gpu else student.dtype).requires_grad_(False).eval()
            self._engine = DecodeEngine(copy)

    @torch.no_grad()
    def write(
        self, openings: Int[Tensor, "B P"], length: int, *, temperature: int | float = 1.0, seed: int = 0
    ) -> Int[Tensor, "B T"]:
        """How the student goes on, until rows are of this length, the openings among them.

        Tokens that end a text are tokens like others: behind them another text begins, as in training.

        Args:
            openings: at least one token a row.
            length: T, above P and at most the student's context.
            temperature: at least 0: 1 are the student's own distributions, 0 takes the likeliest token.
            seed: of the draws, with each row and position: another one for each step and process.

        Raises:
            ValueError: a number out of its range, or no opening.
        """
        _check(self._student, openings, length, temperature)
        if self._engine is None:
            return self._with_cache(openings, length, temperature, seed)
        self._take_weights()
        self._engine.start(openings.tolist(), length)
        own = self._engine.decode(length - openings.shape[1], temperature=float(temperature), seed=seed)
        return torch.cat((openings, own.to(openings)), 1)

    def _take_weights(self) -> None:
        theirs = self._engine.model.parameters()
        for mine, its in zip(theirs, self._student.parameters(), strict=True):
            # In place: the engine's matrices are views of these, and a recording reads where they were.
            mine.copy_(its.full_tensor() if hasattr(its, "full_tensor") else its)

    def _with_cache(self, openings: Tensor, length: int, temperature: int | float, seed: int) -> Tensor:
        source, draws, text = CachedLogits(self._student), torch.Generator().manual_seed(seed), openings
        logits = source.start(openings.tolist(), length)
        while True:
            token = _next(logits, temperature, draws)
            text = torch.cat((text, token), 1)
            if text.shape[1] == length:
                return text
            logits = source.step(token[:, 0])


def is_plain(model: Decoder) -> bool:
    """Whether all its matrices are used as they are, which an engine takes for granted."""
    parts = [part for part in model.modules() if isinstance(part, SelfAttention | SwiGLU)]
    projections = [child for part in parts for name, child in part.named_children() if name.endswith("_proj")]
    return all(type(layer) is Linear for layer in (*projections, model.lm_head))


def _next(logits: Tensor, temperature: int | float, draws: torch.Generator) -> Int[Tensor, "B 1"]:
    token = greedy(logits) if temperature == 0 else sample(logits / temperature, draws)
    return token[:, None]


def _check(model: Decoder, openings: Tensor, length: int, temperature: object) -> None:
    opening, context = openings.shape[1], model.config.max_position_embeddings
    require(
        openings.numel() > 0, "openings", "of at least one token", tuple(openings.shape), "give some text"
    )
    require_integer(1, "length", length, "rows are longer than their openings")
    allowed = f"in [{opening + 1}, {context}], from the openings to the model's context"
    require(opening < length <= context, "length", allowed, length, "take shorter openings or rows")
    remedy = "1 draws from the student's own distributions, 0 takes the likeliest token"
    finite = lambda t: 0 <= t < float("inf")  # noqa: E731
    require_number(finite, "temperature", "at least 0 and finite", temperature, remedy)
