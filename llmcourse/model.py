"""One decoder-only transformer: Llama, Qwen2 and Qwen3 are three settings of it.

    x ← x + Attn(RMSNorm(x));   x ← x + SwiGLU(RMSNorm(x));   logits = RMSNorm(x) W_lmᵀ

Sources: Touvron et al. 2023 (Llama, section 2.2), Qwen Team 2024 (Qwen2: bias on q, k and v),
Qwen Team 2025 (Qwen3: RMSNorm on the heads of q and k). Module names are those of Hugging Face
checkpoints, so a state dict loads without renaming. The model knows nothing of sampling,
quantization or serving: attention and cache are passed in, linear layers may be swapped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llmcourse.attention import Attention, sdpa
from llmcourse.kernels.blas import Linear
from llmcourse.kv_cache import KVCache


@dataclass(frozen=True)
class Llama3RopeScaling:
    """How Llama 3.1 stretches RoPE over longer contexts (as released with Llama 3.1).

    Raises:
        ValueError: a number is not positive, or the high factor is not above the low one.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self):
        _check_counts(self, "original_max_position_embeddings")
        _check_positive(self, "factor", "low_freq_factor", "high_freq_factor")
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"high_freq_factor must be larger than low_freq_factor, "
                f"got {self.high_freq_factor} and {self.low_freq_factor}"
            )


@dataclass(frozen=True)
class DecoderConfig:
    """Shapes and switches of a decoder.

    Raises:
        ValueError: a size below 1, heads that do not divide, or another number out of its range.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: Llama3RopeScaling | None = None
    attention_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    tie_word_embeddings: bool = True
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self):
        _check_counts(self, "vocab_size", "hidden_size", "intermediate_size", "num_layers")
        _check_counts(self, "num_heads", "num_kv_heads", "head_dim", "max_position_embeddings")
        _check_positive(self, "rms_norm_eps", "rope_theta")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads must be a multiple of num_kv_heads, got {self.num_heads} and {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for RoPE, got {self.head_dim}")
        for token in self.eos_token_ids:
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"eos_token_ids must be in [0, {self.vocab_size}), got {token}")


def _check_counts(config, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")


def _check_positive(config, *names: str) -> None:
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{name} must be above 0 and finite, got {getattr(config, name)}")


class RMSNorm(nn.Module):
    """x / RMS(x) · w, with the mean square in fp32 (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return self.weight * F.rms_norm(wide, self.weight.shape, eps=self.eps).to(x.dtype)


def rope_frequencies(config: DecoderConfig) -> Float[Tensor, " half"]:
    """Radians a position for each pair of features (Su et al. 2021, section 3.2.2)."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequency = 1.0 / config.rope_theta**exponent
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    # Fast-turning pairs stay, slow ones are stretched by `factor`, those between are blended.
    turns = scaling.original_max_position_embeddings * frequency / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    keep = ((turns - scaling.low_freq_factor) / span).clamp(0, 1)
    return keep * frequency + (1 - keep) * frequency / scaling.factor


class Rope(NamedTuple):
    """What turns the heads of every layer: cosine and sine of each feature's angle.

    Features i and i + D/2 are a pair and share their angle; the sine of the first is negated.
    """

    cos: Float[Tensor, "B 1 T D"]
    sin: Float[Tensor, "B 1 T D"]

    @classmethod
    def of_pairs(cls, cos: Float[Tensor, "B T half"], sin: Float[Tensor, "B T half"]) -> Rope:
        return cls(torch.cat((cos, cos), -1)[:, None], torch.cat((-sin, sin), -1)[:, None])


def apply_rope(x: Float[Tensor, "B H T D"], rope: Rope) -> Float[Tensor, "B H T D"]:
    """Rotates the pairs (x[i], x[i + D/2]) by the angle of their position.

    (a, b) becomes (a cos − b sin, b cos + a sin); rolled by D/2, every feature meets its partner.
    """
    return x * rope.cos + x.roll(x.shape[-1] // 2, -1) * rope.sin


class Context(NamedTuple):
    """What all layers of one forward pass share."""

    rope: Rope
    positions: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T S"] | None  # None: causal
    cache: KVCache | None
    attention: Attention


class SelfAttention(nn.Module):
    """Project to heads, rotate, look up the cache, attend, project back."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        c = config
        self.head_dim = c.head_dim
        self.q_proj = Linear(c.hidden_size, c.num_heads * c.head_dim, bias=c.attention_bias)
        self.k_proj = Linear(c.hidden_size, c.num_kv_heads * c.head_dim, bias=c.attention_bias)
        self.v_proj = Linear(c.hidden_size, c.num_kv_heads * c.head_dim, bias=c.attention_bias)
        self.o_proj = Linear(c.num_heads * c.head_dim, c.hidden_size, bias=c.output_bias)
        self.q_norm = RMSNorm(c.head_dim, c.rms_norm_eps) if c.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(c.head_dim, c.rms_norm_eps) if c.qk_norm else nn.Identity()

    def forward(self, x: Float[Tensor, "B T C"], layer: int, context: Context) -> Float[Tensor, "B T C"]:
        batch, length, _ = x.shape
        q = self.q_norm(self._heads(self.q_proj(x))).transpose(1, 2)  # (B, H, T, D)
        q = apply_rope(q, context.rope)
        k, v = self.keys_values(x, context.rope)
        if context.cache is not None:
            k, v = context.cache.write(layer, k, v, context.positions)  # (B, Hkv, S, D)
        mixed = context.attention(q, k, v, context.mask)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))

    def keys_values(
        self, x: Float[Tensor, "B T C"], rope: Rope
    ) -> tuple[Float[Tensor, "B Hkv T D"], Float[Tensor, "B Hkv T D"]]:
        """The rotated keys and the values of a layer's normalised input: what a cache holds of it."""
        k = self.k_norm(self._heads(self.k_proj(x))).transpose(1, 2)  # (B, Hkv, T, D)
        return apply_rope(k, rope), self._heads(self.v_proj(x)).transpose(1, 2)

    def _heads(self, projected: Float[Tensor, "B T N"]) -> Float[Tensor, "B T heads D"]:
        return projected.view(*projected.shape[:2], -1, self.head_dim)


class SwiGLU(nn.Module):
    """W_down(silu(W_gate x) · W_up x) (Shazeer 2020)."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Attention and SwiGLU, each behind a norm and around a residual."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x: Float[Tensor, "B T C"], layer: int, context: Context) -> Float[Tensor, "B T C"]:
        x = x + self.self_attn(self.input_layernorm(x), layer, context)
        return x + self.mlp(self.post_attention_layernorm(x))


def _check_shape(name: str, given: Tensor | None, expected: tuple[int, ...]) -> None:
    if given is not None and tuple(given.shape) != expected:
        raise ValueError(
            f"{name} must have shape {expected}, got {tuple(given.shape)}; give it for every new token"
        )


class Backbone(nn.Module):
    """Token ids to the last hidden states; `model.` in a checkpoint's names."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Decoder(nn.Module):
    """A causal language model: `logits = decoder(token_ids)`.

    Args:
        config: shapes and switches.
        attention: the function that mixes values; `attention_reference` or any other that
            keeps its contract.
    """

    def __init__(self, config: DecoderConfig, attention: Attention = sdpa):
        super().__init__()
        self.config = config
        self.attention = attention
        self.model = Backbone(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self._rope_frequencies: Tensor | None = None  # computed at first use, on its device

    @property
    def device(self) -> torch.device:
        return self.model.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.norm.weight.dtype

    @property
    def num_parameters(self) -> int:
        """Trained numbers; tied embeddings count once."""
        return sum(p.numel() for p in self.parameters())

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """An empty cache for this model, on its device and in its dtype."""
        c = self.config
        shape = (c.num_layers, batch_size, c.num_kv_heads, capacity, c.head_dim)
        return KVCache(*shape, dtype=self.dtype, device=self.device)

    def rope(self, positions: Int[Tensor, "B T"]) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every position's angles, `(B, T, D/2)`, taken in fp32 or wider."""
        if self._rope_frequencies is None or self._rope_frequencies.device != positions.device:
            self._rope_frequencies = rope_frequencies(self.config).to(positions.device)
        wide = torch.promote_types(self.dtype, torch.float32)
        angles = positions[..., None].to(wide) * self._rope_frequencies.to(wide)
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    def hidden_states(
        self,
        token_ids: Int[Tensor, "B T"],
        cache: KVCache | None = None,
        *,
        mask: Bool[Tensor, "B T S"] | None = None,
        positions: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T C"]:
        """The last layer's normalised hidden states.

        Args:
            token_ids: the new tokens; with a cache they continue what it holds, without one
                they are the whole text.
            mask: which of the S keys, those in the cache and the new ones, each token looks at;
                None is causal.
            positions: where RoPE has the tokens; None counts on from what the cache holds.

        Raises:
            ValueError: no tokens, ids outside of the vocabulary (on a GPU this is a device assertion:
                a check would stall every step), more or fewer rows than the cache has, a cache of
                another model, or one that would overflow, a mask or positions of another shape; the
                cache is left as it was.
        """
        x, context = self.begin(token_ids, cache, mask=mask, positions=positions)
        for index, layer in enumerate(self.model.layers):
            x = layer(x, index, context)
        return self.model.norm(x)

    def begin(
        self,
        token_ids: Int[Tensor, "B T"],
        cache: KVCache | None = None,
        *,
        mask: Bool[Tensor, "B T S"] | None = None,
        positions: Int[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T C"], Context]:
        """What the first layer is given, for those who run the layers one by one; as `hidden_states`."""
        batch, length = self._check_tokens(token_ids)
        if cache is not None:
            self._check_cache(cache, batch)
        if mask is not None:
            held = 0 if cache is None else cache.extent
            _check_shape("mask", mask, (batch, length, held + length))
        _check_shape("positions", positions, (batch, length))
        x = self._embed(token_ids)
        if cache is None:
            slots, causal = torch.arange(length, device=token_ids.device).expand(batch, length), None
        else:
            slots, causal = cache.reserve(length)
        rope = Rope.of_pairs(*self.rope(slots if positions is None else positions))
        return x, Context(rope, slots, causal if mask is None else mask, cache, self.attention)

    def _check_tokens(self, token_ids: Tensor) -> tuple[int, int]:
        """Rows and tokens of each."""
        if token_ids.ndim != 2 or token_ids.numel() == 0:
            raise ValueError(
                f"token_ids must have shape (B, T), B and T at least 1, got {tuple(token_ids.shape)}; "
                "one text alone is torch.tensor([ids])"
            )
        return token_ids.shape

    def _check_cache(self, cache: KVCache, batch: int) -> None:
        if cache.batch_size != batch:
            raise ValueError(
                f"token_ids must have {cache.batch_size} rows as the cache has, got {batch}; "
                "make a cache for as many, or reorder it"
            )
        c = self.config
        mine = (c.num_layers, c.num_kv_heads, c.head_dim, self.dtype, self.device)
        its = (cache.num_layers, cache.num_kv_heads, cache.head_dim, cache.dtype, cache.device)
        if its != mine:
            names = ("num_layers", "num_kv_heads", "head_dim", "dtype", "device")
            wrong = [
                f"{name} {expected}, got {got}"
                for name, expected, got in zip(names, mine, its, strict=True)
                if got != expected
            ]
            raise ValueError(
                f"cache must be one of this model, with {', '.join(wrong)}; "
                "make it with new_cache of the model that reads the tokens"
            )

    def _embed(self, token_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        try:
            return self.model.embed_tokens(token_ids)
        except IndexError as error:
            low, high = token_ids.min().item(), token_ids.max().item()
            raise ValueError(
                f"token ids must be in [0, {self.config.vocab_size}), got {low if low < 0 else high}; "
                "is the tokenizer another model's?"
            ) from error

    def forward(self, token_ids: Int[Tensor, "B T"], cache: KVCache | None = None) -> Float[Tensor, "B T V"]:
        """Logits of the next token after each of `token_ids`; arguments as `hidden_states`."""
        return self.lm_head(self.hidden_states(token_ids, cache))
