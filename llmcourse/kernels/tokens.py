"""Tokens in and out of the model, without the host: look up, choose, append.

The text of every row lies on the device: `text[b, p]` is its token at position p, and `positions[b]`
says which of them the model reads now. So a whole step, from token to token, can be one CUDA graph.

Sampling is the Gumbel-max trick: argmax of logits / temperature + g, with g = −log(−log(u)) drawn for
every token, is a draw from the softmax (Gumbel 1954; Maddison et al. 2014).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.kernels.arguments import check_dims, check_kind, check_memory, check_tensor
from llmcourse.kernels.backend import Backend, resolve

CHUNK = 4096  # logits that one program of the kernel looks at


def embed_reference(
    text: Int[Tensor, "B S"], positions: Int[Tensor, " B"], table: Float[Tensor, "V C"]
) -> Float[Tensor, "B C"]:
    """The rows of the table for the tokens that are read now."""
    return table[text.gather(1, positions[:, None])[:, 0]]


def embed(
    text: Int[Tensor, "B S"],
    positions: Int[Tensor, " B"],
    table: Float[Tensor, "V C"],
    *,
    out: Float[Tensor, "B C"] | None = None,
    backend: Backend = "auto",
    pdl: bool = False,
) -> Float[Tensor, "B C"]:
    """`embed_reference`, into `out` where it is given.

    Raises:
        ValueError: shapes, dtypes, devices or memory that do not fit, or a backend that cannot run.
    """
    check_dims("table", table, "V", "C")
    check_memory("table", table, table)
    check_text(text, positions, len(text), table)
    memory = "leave it at None for new memory"
    check_tensor("out", out, (len(text), table.shape[1]), table, memory, layout=memory)
    if resolve(backend, table.device, table.dtype) == "reference":
        rows = embed_reference(text, positions, table)
        return rows if out is None else out.copy_(rows)
    from llmcourse.kernels import tokens_triton

    out = table.new_empty(len(positions), table.shape[1]) if out is None else out
    tokens_triton.launch_embed(text, positions, table, out, pdl)
    return out


def check_text(text: Tensor, positions: Tensor, batch_size: int, lead: Tensor) -> None:
    """Raises ValueError unless it is the text of so many rows, and where each is read."""
    check_dims("text", text, "B", "S")
    rows = f"pass {batch_size} rows, whose tokens are read or appended"
    check_tensor("text", text, (batch_size, text.shape[1]), lead, rows, dtype=torch.long)
    check_tensor("positions", positions, (batch_size,), lead, "pass one for each row", dtype=torch.long)


class Choice:
    """What choosing needs beside logits: the temperature, a seed, and memory for the kernel.

    Temperature and seed lie on the device, so that a recorded step draws with those of now.

    Args:
        temperature: 0 for the likeliest token.
        seed: of the noise, which also depends on the row and on the position.

    Attributes:
        inverse_temperature, noise_seed: `(1,)`, what the kernel reads of them.
        peaks: `(B, chunks)`, the largest logit of each chunk of the vocabulary, noise included.
        tokens: `(B, chunks)`, where it stands.
        arrivals: `(B,)`, how many chunks have been looked through; zero between launches.
    """

    def __init__(self, batch_size: int, vocab_size: int, device, *, temperature: float = 0.0, seed: int = 0):
        self.batch_size = batch_size
        self.vocab_size = vocab_size
        self.sampled = temperature > 0
        self.inverse_temperature = torch.ones(1, dtype=torch.float32, device=device)
        self.noise_seed = torch.zeros(1, dtype=torch.long, device=device)
        self.draw_with(temperature, seed)
        self.num_chunks = -(-vocab_size // CHUNK)
        self.peaks = torch.empty(batch_size, self.num_chunks, dtype=torch.float32, device=device)
        self.tokens = torch.empty(batch_size, self.num_chunks, dtype=torch.int32, device=device)
        self.arrivals = torch.zeros(batch_size, dtype=torch.int32, device=device)

    def draw_with(self, temperature: float, seed: int) -> None:
        """Takes another temperature and seed.

        Raises:
            ValueError: a temperature out of range, or 0 where others were drawn with, or the reverse:
                that is another kernel.
        """
        if not 0 <= temperature < float("inf"):
            raise ValueError(f"temperature must be at least 0 and finite, got {temperature}; 0 is greedy")
        if (temperature > 0) != self.sampled:
            kind = "above 0" if self.sampled else "0"
            raise ValueError(f"temperature must stay {kind}, got {temperature}; make another Choice")
        self.temperature = temperature
        self.seed = seed
        if self.sampled:
            self.inverse_temperature.fill_(1 / temperature)
            self.noise_seed.fill_(seed)

    def check(self, batch_size: int, vocab_size: int, device: torch.device) -> None:
        """Raises ValueError unless it was made for logits of these sizes, on this device."""
        needed, held = (batch_size, vocab_size, device), (self.batch_size, self.vocab_size, self.peaks.device)
        if held != needed:
            raise ValueError(
                f"choice must be for (batch_size, vocab_size, device) {needed} of the logits, got {held}; "
                "make one for these"
            )


def choose_reference(
    logits: Float[Tensor, "B V"], text: Int[Tensor, "B S"], positions: Int[Tensor, " B"], choice: Choice
) -> None:
    """Appends a token to each row: `text[b, p + 1]`; then p + 1 is the position that is read."""
    if choice.sampled:
        # Noise of its own for every row and position, whatever else is in the batch.
        noise = torch.empty_like(logits)
        for row, position in enumerate(positions.tolist()):
            generator = torch.Generator(logits.device).manual_seed(hash((choice.seed, row, position)))
            noise[row].exponential_(generator=generator)
        logits = logits / choice.temperature - noise.log()
    positions += 1
    text.scatter_(1, positions[:, None], logits.argmax(-1, keepdim=True))


def choose(
    logits: Float[Tensor, "B V"],
    text: Int[Tensor, "B S"],
    positions: Int[Tensor, " B"],
    choice: Choice,
    *,
    keep: Float[Tensor, "B V"] | None = None,
    backend: Backend = "auto",
) -> None:
    """`choose_reference` on the device; the noise is another, its distribution the same.

    Rows of the logits may lie apart from each other.

    Logits that are NaN count as infinite, so that a broken model still chooses a token of its vocabulary.

    Args:
        keep: where to copy the logits on the way, if not None.

    Raises:
        ValueError: shapes, dtypes, devices or memory that do not fit, or a backend that cannot run.
    """
    check_dims("logits", logits, "B", "V")
    _check_rows("logits", logits)
    if keep is not None:
        check_kind("keep", keep, logits)
        if keep.shape != logits.shape:
            raise ValueError(
                f"keep must have the shape of the logits, {tuple(logits.shape)}, got {tuple(keep.shape)}; "
                "leave it at None to keep none"
            )
        _check_rows("keep", keep)
    check_text(text, positions, len(logits), logits)
    choice.check(*logits.shape, logits.device)
    if resolve(backend, logits.device, logits.dtype) == "reference":
        if keep is not None:
            keep.copy_(logits)
        return choose_reference(logits, text, positions, choice)
    from llmcourse.kernels import tokens_triton

    return tokens_triton.launch_choose(logits, text, positions, choice, keep)


def _check_rows(name: str, logits: Tensor) -> None:
    if logits.stride(1) != 1:
        raise ValueError(
            f"{name} must have the numbers of a row side by side, got strides {logits.stride()}; "
            "call .contiguous()"
        )
