"""A KV cache in few bits: each token's key and value of each head are rounded as they are written.

    K̃ = S (q − Z), one S (and Z) for the D numbers of one token and one head

Nothing has to be known in advance, a token is never rounded twice, and rows, rollbacks and branches go on as
in any cache. Per token and head is what serving systems do for int8; Liu et al. 2024 (KIVI, section 3) find
that at 2 bits keys want a scale for each channel instead. Reading restores the keys and values of one layer
in the model's dtype: of that size, and for that long, is the memory that is needed besides.
"""

from __future__ import annotations

from functools import partial
from typing import NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.source import CachedLogits
from llmcourse.kv_cache import KVCache
from llmcourse.model import Decoder
from llmcourse.quantization.grid import code_range, nearest_codes, scale_and_zero_point
from llmcourse.quantization.grid import values as restored
from llmcourse.quantization.packing import bytes_of, pack_bytes, unpack_bytes

# Codes are chosen for the scale as it is stored, so three digits of it will do; its range is that of fp32.
SCALE_DTYPE = torch.bfloat16


class QuantizedKVCache(KVCache):
    """A `KVCache` that holds codes of `bits` each.

    In each layer, a token takes for the key of one head ⌈D · bits / 8⌉ bytes, 2 more for the scale and 1 for
    the zero point if there is one, and the same for the value: `bytes_per_token` adds them up.

    Attributes:
        bits: 2 to 8.
        symmetric: without zero points. The default is so for 8 bits. With fewer, D numbers are rarely as far
            above 0 as below, and a byte is well spent on the third of the error that this costs.
        key_codes, value_codes: packed, `(layers, B, Hkv, capacity, bytes)`; key_scale, value_scale,
            key_zero_point and value_zero_point have 1 in the last place.

    Raises:
        ValueError: bits that do not exist, and as `KVCache`.
        DoesNotFit: as `KVCache`.
    """

    def __init__(
        self,
        num_layers: int,
        batch_size: int,
        num_kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        bits: int = 8,
        symmetric: bool | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        code_range(bits)
        self.bits = bits
        self.symmetric = bits == 8 if symmetric is None else symmetric
        super().__init__(num_layers, batch_size, num_kv_heads, capacity, head_dim, dtype=dtype, device=device)

    @classmethod
    def of(
        cls,
        model: Decoder,
        batch_size: int,
        capacity: int,
        *,
        bits: int = 8,
        symmetric: bool | None = None,
    ) -> QuantizedKVCache:
        """An empty cache for this model, as `model.new_cache`."""
        c = model.config
        shape = (c.num_layers, batch_size, c.num_kv_heads, capacity, c.head_dim)
        return cls(*shape, bits=bits, symmetric=symmetric, dtype=model.dtype, device=model.device)

    @property
    def _parts(self) -> tuple[str, ...]:
        return ("codes", "scale") if self.symmetric else ("codes", "scale", "zero_point")

    @property
    def tensors(self) -> dict[str, Tensor]:
        names = [f"{what}_{part}" for what in ("key", "value") for part in self._parts]
        return {name: getattr(self, name) for name in names}

    def token_bytes(self, num_layers: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        a_vector = bytes_of(head_dim, self.bits) + SCALE_DTYPE.itemsize + (not self.symmetric)
        return 2 * num_layers * num_kv_heads * a_vector

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> None:
        *slots, head_dim = shape
        kinds = {
            "codes": (bytes_of(head_dim, self.bits), torch.uint8),
            "scale": (1, SCALE_DTYPE),
            "zero_point": (1, torch.int8),
        }
        for what in ("key", "value"):
            for part in self._parts:
                width, kind = kinds[part]
                setattr(self, f"{what}_{part}", torch.zeros(*slots, width, dtype=kind, device=device))

    def write(
        self,
        layer: int,
        k: Float[Tensor, "B Hkv T D"],
        v: Float[Tensor, "B Hkv T D"],
        positions: Int[Tensor, "B T"],
    ) -> tuple[Float[Tensor, "B Hkv S D"], Float[Tensor, "B Hkv S D"]]:
        """Rounds and stores one layer's new keys and values; returns all that are held as they were rounded.

        What is not finite makes its own key or value NaN, and no other.

        Raises:
            ValueError: keys or values that are not `(B, Hkv, T, D)`; nothing is written.
        """
        self._check_new(k, v, positions)
        for what, new in (("key", k), ("value", v)):
            for part, tensor in self._encoded(new).items():
                slots = positions[:, None, :, None].expand_as(tensor)
                getattr(self, f"{what}_{part}")[layer].scatter_(2, slots, tensor)
        return self.read(layer)

    def read(self, layer: int) -> tuple[Float[Tensor, "B Hkv S D"], Float[Tensor, "B Hkv S D"]]:
        """A layer's keys and values, as they were rounded, of the first `extent` slots."""
        return self._decoded("key", layer), self._decoded("value", layer)

    def _encoded(self, x: Float[Tensor, "B Hkv T D"]) -> dict[str, Tensor]:
        ends = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        scale, zero_point = scale_and_zero_point(
            *ends, self.bits, symmetric=self.symmetric, dtype=SCALE_DTYPE
        )
        codes = nearest_codes(x, scale, zero_point, self.bits)
        scale = scale.where(scale.isfinite(), torch.nan)  # infinite times a code would be cut to a number
        parts = {"codes": pack_bytes(codes, self.bits, checked=False), "scale": scale}
        return parts if zero_point is None else {**parts, "zero_point": zero_point}

    def _decoded(self, what: str, layer: int) -> Float[Tensor, "B Hkv S D"]:
        codes, scale, *zero_point = (
            getattr(self, f"{what}_{part}")[layer, :, :, : self.extent] for part in self._parts
        )
        q = unpack_bytes(codes, self.bits, self.head_dim)
        return restored(q, scale, zero_point[0] if zero_point else None, self.dtype)

    @property
    def keys(self) -> NoReturn:
        raise AttributeError("a QuantizedKVCache holds codes; use read(layer), or a KVCache for kernels")

    @property
    def values(self) -> NoReturn:
        raise AttributeError("a QuantizedKVCache holds codes; use read(layer), or a KVCache for kernels")


def quantized_cache_logits(model: Decoder, bits: int = 8, symmetric: bool | None = None) -> CachedLogits:
    """A source of logits for `generate`, `stream` and beam search whose cache has so many bits.

    Raises:
        ValueError: bits that do not exist.
    """
    code_range(bits)
    return CachedLogits(model, partial(QuantizedKVCache.of, model, bits=bits, symmetric=symmetric))
