"""A decoder over a paged cache: the new tokens of all requests as one row of tokens through every layer.

The matrices do not care whose token it is, and see all of them as one batch; only attention looks up whose
blocks each token may see. So prompts and answers mix freely, and nothing is padded (Yu et al. 2022, Orca,
section 3.2, "selective batching").
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.engine.weights import LayerWeights, fuse_layers
from llmcourse.decoding.errors import require
from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.blas import lay_out, product
from llmcourse.kernels.choose_rows import choose_rows
from llmcourse.kernels.decode_attention import MOST_SPLITS, Workspace
from llmcourse.kernels.paged_attention import paged_attention
from llmcourse.kernels.rotary import rotate_and_store
from llmcourse.kernels.swiglu import swiglu
from llmcourse.model import Decoder
from llmcourse.serving.paged_cache import PagedCache
from llmcourse.serving.step_inputs import StepInputs, StepSize

PROGRAMS = 4  # of attention for each multiprocessor, so that its loads are always under way


class PagedDecoder:
    """Runs steps of a model and draws the next tokens.

    Args:
        model: whose projections become views of fused matrices (see `weights.fuse_layers`).
        cache: made for this model.
        max_running: slots of the scheduler's batch.
        max_length: of a text.
        backend: "triton" for the kernels, "reference" for PyTorch's operations, "auto" for what runs here.

    Attributes:
        last_tokens: `(max_running + 1,)`, what was drawn last for each slot of the batch, and one to spare.

    Raises:
        ValueError: a backend that cannot run, or a cache of another model.
    """

    def __init__(
        self,
        model: Decoder,
        cache: PagedCache,
        *,
        max_running: int,
        max_length: int,
        backend: Backend = "auto",
    ):
        c, device = model.config, model.device
        expected, found = (c.num_layers, c.num_kv_heads, c.head_dim), (cache.keys.shape[i] for i in (0, 2, 4))
        found = tuple(found)
        require(found == expected, "cache", f"one of (layers, Hkv, D) {expected}", found, "make it for model")
        self.model, self.cache = model, cache
        self.backend = resolve(backend, device, model.dtype)
        by_rows = self.backend == "triton"
        self.layers: list[LayerWeights] = fuse_layers(model, torch.Tensor.contiguous if by_rows else lay_out)
        cos, sin = model.rope(torch.arange(max_length, device=device)[None])
        self.cos, self.sin = cos[0].contiguous(), sin[0].contiguous()
        self.last_tokens = torch.zeros(max_running + 1, dtype=torch.long, device=device)
        cuda = device.type == "cuda"
        self._every = torch.arange(max_running + 1, dtype=torch.int32, device=device)
        self._processors = torch.cuda.get_device_properties(device).multi_processor_count if cuda else 1

    def step(self, inputs: StepInputs, size: StepSize) -> tuple[Float[Tensor, "R V"], Int[Tensor, " R"]]:
        """Computes a step; returns logits for each request, and the tokens drawn from them."""
        known = self.last_tokens[inputs.batch_slots]
        token_ids = torch.where(inputs.token_ids < 0, known, inputs.token_ids)
        hidden = self._hidden(token_ids, inputs, size)
        eps, norm = self.model.config.rms_norm_eps, self.model.model.norm.weight
        x = F.rms_norm(hidden[inputs.drawn_after], norm.shape, norm, eps)
        logits = product(x, self.model.lm_head.weight)
        settings = (inputs.temperatures, inputs.seeds, inputs.drawn_positions)
        tokens = choose_rows(logits, *settings, backend=self.backend)
        self.last_tokens.index_copy_(0, inputs.drawn_slots, tokens)
        return logits, tokens

    def _hidden(
        self, token_ids: Int[Tensor, " T"], inputs: StepInputs, size: StepSize
    ) -> Float[Tensor, "T C"]:
        """All layers; keys and values of the new tokens are in the pool afterwards."""
        c = self.model.config
        x = F.embedding(token_ids, self.model.model.embed_tokens.weight)
        workspace = self._workspace(size.decodes)
        for index, w in enumerate(self.layers):
            qkv = product(F.rms_norm(x, w.input_norm.shape, w.input_norm, c.rms_norm_eps), w.qkv, w.qkv_bias)
            keys, values = self.cache.keys[index], self.cache.values[index]
            places = (inputs.positions, inputs.places)
            angles = (self.cos, self.sin, w.head_norm)
            q = rotate_and_store(qkv, keys, values, *places, *angles, backend=self.backend)
            mixed = self._attend(q, keys, values, inputs, size, workspace)
            x = _added(x, mixed.flatten(1), w.output, w.output_bias)
            inner = product(F.rms_norm(x, w.mlp_norm.shape, w.mlp_norm, c.rms_norm_eps), w.gate_up)
            x = _added(x, swiglu(inner, backend=self.backend), w.down)
        return x

    def _attend(
        self,
        q: Float[Tensor, "T H D"],
        keys: Float[Tensor, "blocks Hkv size D"],
        values: Float[Tensor, "blocks Hkv size D"],
        inputs: StepInputs,
        size: StepSize,
        workspace: Workspace | None,
    ) -> Float[Tensor, "T H D"]:
        """Requests with one new token apart from pieces of prompts, whose tiles are larger."""
        out, n = torch.empty_like(q), size.decodes
        for num_rows, tokens, rows, starts, most_new, splits in (
            (n, slice(n), slice(n), self._every[: n + 1], 1, workspace),
            (size.chunks, slice(n, None), slice(n, None), inputs.starts, size.longest, None),
        ):
            if num_rows:
                paged_attention(
                    q[tokens],
                    keys,
                    values,
                    inputs.tables[rows],
                    starts,
                    inputs.lengths[rows],
                    most_new=most_new,
                    workspace=splits,
                    out=out[tokens],
                    backend=self.backend,
                )
        return out

    def _workspace(self, num_decodes: int) -> Workspace | None:
        """Memory for splits, where too few requests decode to fill the chip."""
        if not num_decodes or self.backend == "reference":
            return None
        c = self.model.config
        splits = min(PROGRAMS * self._processors // (num_decodes * c.num_kv_heads), MOST_SPLITS)
        if splits < 2:
            return None
        splits, device = 1 << (splits.bit_length() - 1), self.model.device
        return Workspace(num_decodes, c.num_heads, c.num_kv_heads, c.head_dim, splits, device)


def _added(
    x: Float[Tensor, "T C"],
    inner: Float[Tensor, "T K"],
    weight: Float[Tensor, "C K"],
    bias: Float[Tensor, " C"] | None = None,
) -> Float[Tensor, "T C"]:
    """x + inner Wᵀ + b; on a GPU in x's own memory, added by the product itself."""
    if bias is not None:
        x = x + bias
    return x.addmm_(inner, weight.t()) if x.is_cuda else x + product(inner, weight)
