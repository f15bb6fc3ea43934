"""An encoder: the layers of the family's decoder, where every token sees the whole text.

    x ← x + Attn(RMSNorm(x), all tokens);   x ← x + SwiGLU(RMSNorm(x))

As in BERT (Devlin et al. 2019, section 3) a text begins with a token whose states stand for all of it, two
texts are one row with a separator between them, and pre-training fills in masked tokens. The layers are
`llmcourse.model`'s own, so positions are rotary and norms are RMSNorm before each part. The embedding table
is a frozen copy of `draft`'s, so that only the layers need to be stored; the special tokens, which a language
model never sees inside a text, get vectors of their own.

Two more vectors are added to the tokens of pairs: one to all of the second text (BERT's segment embeddings,
less the first, which all rows have), and one to tokens that stand in the other text as well (the exact match
of Chen et al. 2017, "Reading Wikipedia to answer open-domain questions", section 3.2). A large model finds
out what two texts share by itself; one as small as this needs far more examples for that than our tasks have.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llmcourse.attention.definition import group_size
from llmcourse.decoding.errors import require
from llmcourse.model import Context, DecoderConfig, DecoderLayer, RMSNorm, Rope, rope_frequencies

# The first ids of the family's vocabulary: <|endoftext|>, <|pad|>, <|mask|>, <|sep|>.
START, PAD, MASK, SEPARATOR = range(4)
NUM_SPECIAL = 4
TABLE = "embed_tokens.weight"
ADDED = 0.5  # deviation of what is added to tokens of pairs, which come out of their norm with one of 1


def encoder_shape(vocab_size: int, hidden_size: int = 128, num_layers: int = 12) -> DecoderConfig:
    """Deep and narrow, for exits need layers: below 3 MB in bfloat16 without the embedding table."""
    return DecoderConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 3 // 2,
        num_layers=num_layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=hidden_size // 4,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
    )


def attend_everywhere(q: Tensor, k: Tensor, v: Tensor, mask: Bool[Tensor, "B T S"]) -> Tensor:
    """`attention.sdpa` with a mask. Keys and values are repeated for the heads that share them: PyTorch's
    fused kernels take a mask or shared heads, not both."""
    group = group_size(q, k)
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])


def in_second(tokens: Int[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Whether a token stands behind a separator."""
    separators = tokens == SEPARATOR
    return separators.cumsum(1) > separators


def in_both(tokens: Int[Tensor, "B T"], second: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Whether a token stands in the other text, too; special ones do not count.

    Args:
        second: as `in_second` says.
    """
    same = tokens[:, :, None] == tokens[:, None, :]
    across = second[:, :, None] != second[:, None, :]
    return (same & across).any(-1) & (tokens >= NUM_SPECIAL)


class Encoder(nn.Module):
    """Rows of token ids to states.

    Args:
        config: shapes; `tie_word_embeddings` is taken for granted.
        table: embeddings `(V, C)`, kept as they are.

    Raises:
        ValueError: a table of another shape.
    """

    def __init__(self, config: DecoderConfig, table: Float[Tensor, "V C"]):
        super().__init__()
        expected, given = (config.vocab_size, config.hidden_size), tuple(table.shape)
        require(given == expected, "table", f"of shape {expected}", given, "use one of the same hidden size")
        self.config = config
        self.embed_tokens = nn.Embedding.from_pretrained(table.detach().clone(), freeze=True)
        self.special = nn.Embedding(NUM_SPECIAL, config.hidden_size)
        self.second = nn.Parameter(torch.zeros(config.hidden_size))  # added to tokens of a second text
        self.shared = nn.Parameter(torch.zeros(config.hidden_size))  # added to tokens that both texts have
        self.input_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.register_buffer("rope_frequencies", rope_frequencies(config), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    def init_weights(self, seed: int) -> None:
        """Normal with deviation 0.02, smaller for what writes into the residual stream (as the decoders)."""
        generator = torch.Generator().manual_seed(seed)
        for added in (self.second, self.shared):
            added.data.copy_(torch.empty(added.shape).normal_(0, ADDED, generator=generator))
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2 or name == TABLE:
                continue
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            deviation = 0.02 / (2 * self.config.num_layers) ** 0.5 if writes else 0.02
            parameter.data.copy_(torch.empty(parameter.shape).normal_(0, deviation, generator=generator))

    def start(self, tokens: Int[Tensor, "B T"]) -> tuple[Float[Tensor, "B T C"], Context]:
        """What goes into the first layer, and what all layers share.

        Args:
            tokens: rows padded with `PAD` on the right, which nobody looks at.

        Raises:
            ValueError: no tokens, or rows that are longer than the context.
        """
        longest = self.config.max_position_embeddings
        good = tokens.numel() > 0 and tokens.shape[1] <= longest
        require(
            good, "tokens", f"of shape (B, T), T from 1 to {longest}", tuple(tokens.shape), "cut the text"
        )
        batch, length = tokens.shape
        own = self.special(tokens.clamp(max=NUM_SPECIAL - 1))
        x = self.input_norm(torch.where((tokens < NUM_SPECIAL)[..., None], own, self.embed_tokens(tokens)))
        second = in_second(tokens)
        x = x + self.second * second[..., None].to(x.dtype)
        x = x + self.shared * in_both(tokens, second)[..., None].to(x.dtype)
        positions = torch.arange(length, device=tokens.device).expand(batch, length)
        mask = (tokens != PAD)[:, None].expand(batch, length, length)
        return x, Context(self._rope(positions[:1], x.dtype), positions, mask, None, attend_everywhere)

    def _rope(self, positions: Int[Tensor, "1 T"], dtype: torch.dtype) -> Rope:
        angles = positions[..., None].float() * self.rope_frequencies
        return Rope.of_pairs(angles.cos().to(dtype), angles.sin().to(dtype))

    def layer(self, index: int, x: Float[Tensor, "B T C"], context: Context) -> Float[Tensor, "B T C"]:
        """One layer, counted from 0. (None looks at its own number: that would only matter to a cache.)"""
        return self.layers[index](x, 0, context)

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        """The last layer's normalised states."""
        x, context = self.start(tokens)
        for index in range(self.config.num_layers):
            x = self.layer(index, x, context)
        return self.norm(x)

    def token_logits(self, states: Float[Tensor, "*shape C"]) -> Float[Tensor, "*shape V"]:
        """Which token stands at a place: the states against the embedding table."""
        return F.linear(states, self.embed_tokens.weight)


def save_encoder(encoder: Encoder, folder: Path) -> None:
    """Writes `config.json` and the weights in bf16, without the embedding table."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {n: t.detach().to("cpu", torch.bfloat16) for n, t in encoder.state_dict().items() if n != TABLE}
    save_file({n: t.contiguous() for n, t in state.items()}, folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes for its owner alone
    (folder / "config.json").write_text(json.dumps(asdict(encoder.config), indent=2) + "\n", encoding="utf-8")


def load_encoder(folder: Path, table: Float[Tensor, "V C"]) -> Encoder:
    """An encoder as `save_encoder` wrote it, with the embedding table that it was trained on.

    Raises:
        FileNotFoundError: nothing was written there.
        ValueError: a damaged file, weights that are missing, or a table of another shape.
    """
    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = DecoderConfig(**stored | {"eos_token_ids": tuple(stored["eos_token_ids"])})
        encoder = Encoder(config, table)
        weights = load_file(folder / "model.safetensors")
        encoder.load_state_dict({TABLE: table, **weights})
    except (json.JSONDecodeError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{folder} must hold an encoder, got {reason}; remove it, and train it again"
        ) from error
    return encoder


def row(texts: Sequence[Sequence[int]], length: int, *, first_from_end: bool = False) -> list[int]:
    """One row of at most `length` tokens: start, a text, and if there is another, separator and that.

    Of two texts each gets half of the room, and what the other leaves.

    Args:
        first_from_end: where two texts are too long, keep the end of the first: it is followed by the second.

    Raises:
        ValueError: no text or more than two, or no room for a token of each.
    """
    require(len(texts) in (1, 2), "texts", "one or two", len(texts), "classify one text, or a pair")
    room = length - len(texts)
    require(room >= len(texts), "length", f"at least {2 * len(texts)}", length, "leave room for each text")
    if len(texts) == 1:
        return [START, *texts[0][:room]]
    first, second = texts
    kept = max(room // 2, room - len(second))
    first = first[-kept:] if first_from_end else first[:kept]
    return [START, *first, SEPARATOR, *second[: room - len(first)]]
