"""Medusa behind static memory: a step of heads, tree and verdict is one recorded graph.

It holds the heads' guesses from the hidden state that the last step left, one pass of the backbone over the
tree, the verdict, and the path's way to its place in text and cache (Cai et al. 2024, section 2.1). Greedy
alone: the text is that of greedy decoding. `loop` is the same with all its kinds of verdict, step by step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmcourse.decoding.engine.prefill import prefill
from llmcourse.decoding.engine.step import KernelSettings, StepState, check_room
from llmcourse.decoding.engine.window import Window
from llmcourse.decoding.errors import require
from llmcourse.decoding.source import CachedLogits, check_prompts
from llmcourse.kernels.append_attention import MOST_TOKENS
from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.blas import lay_out
from llmcourse.kernels.draft_trees import PathMemory, keep_path, path_end, settle_tree
from llmcourse.kernels.ranked_drafts import Ranking, draft_ranked
from llmcourse.kernels.tokens import Choice, choose
from llmcourse.model import Decoder
from llmcourse.speculative.arguments import check_place
from llmcourse.speculative.engine.stepping import SteppingEngine
from llmcourse.speculative.medusa.candidates import MedusaTree, require_tree
from llmcourse.speculative.medusa.guesses import Guesses
from llmcourse.speculative.medusa.heads import MedusaHeads, check_fits
from llmcourse.speculative.medusa.reading import mask_of


class MedusaEngine(SteppingEngine):
    """Writes what greedy decoding of the backbone writes, several tokens a step.

    That is so for the logits that the pass over a tree gives; see `SpeculativeEngine` on their rounding.

    Args:
        model: the backbone; its projections become views of fused matrices.
        heads: trained on it, on its device and in its dtype.
        tree: which of the heads' guesses are tried together; with the root at most 64 tokens for kernels.
        backend, graph: as in `DecodeEngine`.
        settings: of the backbone's kernels; tiles are for B · (N + 1) rows.

    Raises:
        TypeError, ValueError: heads that do not fit the backbone, a tree that they cannot fill, that is empty
            or too large, or a backend that cannot run.
    """

    def __init__(
        self,
        model: Decoder,
        heads: MedusaHeads,
        tree: MedusaTree,
        *,
        backend: Backend = "auto",
        settings: KernelSettings | None = None,
        graph: bool = True,
    ):
        check_fits(heads, model)
        require_tree(tree)
        tree.check(heads.config)
        require(len(tree) > 0, "tree", "of one node or more", 0, "decode without heads to draft nothing")
        check_place(heads, model)
        backend = resolve(backend, model.device, model.dtype)
        if backend == "triton":
            most, remedy = MOST_TOKENS - 1, "prune the tree, or take the reference"
            allowed = f"of at most {most} nodes for the attention's kernel"
            require(len(tree) <= most, "tree", allowed, len(tree), remedy)
        self.heads, self.tree, self.settings = heads, tree, settings
        context = model.config.max_position_embeddings
        super().__init__(model, tree.depth, context, backend=backend, graph=graph)
        self._guesses = Guesses(model, heads, tree.depth, backend=backend, settings=settings)
        self._mask = mask_of(tree.tree, model.device)

    @torch.no_grad()
    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> list[int]:
        """Reads the prompts; returns the first token of each text.

        Memory and recordings are kept from the last start where batch and capacity still fit.

        Args:
            capacity: tokens to make room for in each row, its prompt included.

        Raises:
            TypeError, ValueError: prompts that `check_prompts` refuses, or a capacity that does not hold
                them and one token more, or outgrows the model's context.
            DoesNotFit: the memory that is free does not hold the cache.
        """
        check_prompts(prompts, CachedLogits(self.target))
        self._check_capacity(prompts, capacity)
        self._prepare(len(prompts), capacity)
        self._reports.clear()
        self._lengths = [len(prompt) + 1 for prompt in prompts]
        self._hidden.copy_(prefill(self._state, prompts))
        state = self._state
        choose(state.logits, state.text, state.positions, self._first, backend=self.backend)
        return state.text.gather(1, state.positions[:, None])[:, 0].tolist()

    @torch.no_grad()
    def draft(self) -> None:
        """The heads' part of a step alone, to be timed: it moves nothing on.

        Raises:
            ValueError: no prompt was read yet.
        """
        self._require_started("draft")
        self._run("draft", self._draft_in_place)

    @torch.no_grad()
    def verify(self) -> None:
        """The backbone's pass over root and tree, to be timed: it moves nothing on.

        Raises:
            ValueError: no prompt was read yet.
        """
        self._require_started("verify")
        self._run("verify", self._read_in_place)

    @property
    def _report(self) -> Tensor:
        return self._memory.report

    def _kept_by_recording(self) -> tuple[object, list[Tensor]]:
        return None, [self._state.text, self._state.positions, self._hidden]

    def _launch(self) -> None:
        self._run("step", self._whole)

    def _draft_in_place(self) -> None:
        state, logits = self._state, self._guesses.logits(self._hidden)
        given = {"backend": self.backend, "pdl": self._guesses.pdl(len(logits))}
        draft_ranked(logits, state.text, state.positions, self._ranking, **given)

    def _read_in_place(self) -> None:
        """Behind the text, where keys and values of a tree do no harm."""
        self._state.positions += len(self.tree)
        self._window.read()
        self._state.positions -= len(self.tree)

    def _whole(self) -> None:
        state, memory = self._state, self._memory
        self._draft_in_place()
        state.positions += len(self.tree)
        self._window.read()
        places = (state.text, state.positions, self.capacity - 1, self._mask, memory)
        settle_tree(self._window.logits, *places, self._likeliest, backend=self.backend)
        keep_path(state.cache.keys, state.cache.values, memory, backend=self.backend)
        norm = self.target.model.norm.weight.data
        path_end(self._window.hidden, memory, norm, state.eps, out=self._hidden, backend=self.backend)

    def _prepare(self, batch_size: int, capacity: int) -> None:
        if self.capacity >= capacity and self._state.batch_size == batch_size:
            return
        # The old cache, and the recordings that hold on to it, go before a new one is made.
        self._recordings.clear()
        self._state, self._window = None, None
        self.capacity = 0
        num_tokens = len(self.tree) + 1
        slots = capacity + num_tokens  # a tree behind the last token of a text
        check_room(self.target, batch_size, slots)
        layout = torch.Tensor.contiguous if self.backend == "triton" else lay_out
        self._state = StepState(self.target, batch_size, slots, layout)
        settings = {"backend": self.backend, "settings": self.settings}
        self._window = Window(self._state, num_tokens, self._mask, **settings)
        self._memory = PathMemory.of(batch_size, self._mask)
        self._ranking = Ranking(batch_size, self.tree.heads, self.tree.ranks, self.vocab_size, self.device)
        self._first = Choice(batch_size, self.vocab_size, self.device)
        self._likeliest = Choice(batch_size * num_tokens, self.vocab_size, self.device)
        self._hidden = self._window.hidden.new_zeros(batch_size, self.target.config.hidden_size)
        self.capacity = capacity
