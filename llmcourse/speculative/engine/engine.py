"""A target and a drafter behind static memory: a step of speculation is one recorded graph.

It holds γ + 1 passes: γ of the drafter and one of the target over all drafts, then the verdict and the
rollback (Leviathan et al. 2023, algorithm 1). Whatever the next step needs lies on the device already, so
that the host may launch it before it has read which tokens the texts gained in this one. On the CPU the same
classes run with the kernels' references.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmcourse.decoding.engine.prefill import prefill
from llmcourse.decoding.engine.step import KernelSettings, StepState, check_room
from llmcourse.decoding.engine.weights import Layout
from llmcourse.decoding.engine.window import Window
from llmcourse.decoding.errors import require, require_integer, require_number
from llmcourse.decoding.source import CachedLogits, check_prompts
from llmcourse.kernels.append_attention import MOST_TOKENS
from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.blas import lay_out
from llmcourse.kernels.drafts import settle_greedy
from llmcourse.kernels.drawn_drafts import VerdictMemory, settle_drawn
from llmcourse.kernels.tokens import Choice, choose
from llmcourse.model import Decoder
from llmcourse.speculative.engine.drafting import Drafting
from llmcourse.speculative.engine.lookups import Lookups
from llmcourse.speculative.engine.shared_drafting import SharedDrafting
from llmcourse.speculative.engine.stepping import SteppingEngine
from llmcourse.speculative.lookup import LookupDrafter
from llmcourse.speculative.vocabulary import check_sizes


class SpeculativeEngine(SteppingEngine):
    """Writes what the target writes: the same tokens if greedy, otherwise texts of the same distribution.

    That is so for the logits that the pass over γ + 1 tokens gives. They are those of a pass over one up to
    rounding: in 16 bits, where two tokens are as good as equally likely, `DecodeEngine` may take the other.
    Nobody looks for broken logits, as that would hold up the device: with NaN a text goes on somehow, in the
    vocabulary.

    Args:
        target: whose text is written; its projections become views of fused matrices, and the drafter's too.
        drafter: a smaller model of the same vocabulary, `first_layers(target, n)`, or a `LookupDrafter`: the
            host looks up while the device waits, and only the verdict is a recorded graph.
        draft_length: γ, the same at every step. Near the end of a text drafts go past it, into memory that
            is kept for them, and are thrown away: nothing is clamped on the device.
        backend, graph: as in `DecodeEngine`.
        settings, drafter_settings: of the kernels of each model; tiles are for γ + 1 tokens of the target.
        shared_cache: whether a drafter of the target's first layers works in the target's cache, and
            verification begins behind these layers, as `shared_layers` explains.

    Raises:
        TypeError, ValueError: γ below 1 or more than attention takes, vocabularies, devices or dtypes that
            differ, a cache shared with a drafter that is not the target's first layers, or a backend that
            cannot run.
    """

    def __init__(
        self,
        target: Decoder,
        drafter: Decoder | LookupDrafter,
        *,
        draft_length: int = 4,
        backend: Backend = "auto",
        settings: KernelSettings | None = None,
        drafter_settings: KernelSettings | None = None,
        shared_cache: bool = False,
        graph: bool = True,
    ):
        require_integer(1, "draft_length", draft_length, "decode without a drafter to draft nothing")
        self.models = [target] if isinstance(drafter, LookupDrafter) else [target, drafter]
        _check_drafter(target, drafter)
        if shared_cache:
            _check_first_layers(target, drafter)
        self.drafter, self.draft_length, self.shared_cache = drafter, draft_length, shared_cache
        backend = resolve(backend, target.device, target.dtype)
        if backend == "triton":
            longest, remedy = MOST_TOKENS - 1, "draft less, or take the reference"
            allowed = f"at most {longest} for the attention's kernel"
            require(draft_length <= longest, "draft_length", allowed, draft_length, remedy)
        self.settings, self.drafter_settings = settings, drafter_settings
        max_length = min(model.config.max_position_embeddings for model in self.models)
        shorter, allowed = draft_length < max_length, f"below the context of {max_length}"
        remedy = "a step cannot bring more than a whole text"
        require(shorter, "draft_length", allowed, draft_length, remedy)
        super().__init__(target, draft_length, max_length, backend=backend, graph=graph)

    @torch.no_grad()
    def start(
        self, prompts: Sequence[Sequence[int]], capacity: int, *, temperature: float = 0.0, seed: int = 0
    ) -> list[int]:
        """Reads the prompts by both models; returns the first token of each text.

        Memory and recordings are kept from the last start where batch and capacity still fit.

        Args:
            capacity: tokens to make room for in each row, its prompt included.
            temperature, seed: as in `DecodeEngine.decode`; the seed is that of drafts and of verdicts.

        Raises:
            TypeError, ValueError: prompts that `check_prompts` refuses, or a capacity that does not hold
                them and one token more, or outgrows a model's context.
            DoesNotFit: the memory that is free does not hold the caches.
        """
        check_prompts(prompts, CachedLogits(self.target))
        self._check_draws(temperature, seed)
        self._check_capacity(prompts, capacity)
        self._prepare(len(prompts), capacity)
        self.choice = self._choice_for(temperature, int(seed))
        self._reports.clear()
        self._lengths = [len(prompt) + 1 for prompt in prompts]  # of the texts, as far as they were collected
        for state in self._states:
            prefill(state, prompts)
        choose(self._state.logits, self._state.text, self._state.positions, self.choice, backend=self.backend)
        first = self._state.text.gather(1, self._state.positions[:, None])[:, 0].tolist()
        self._drafting.start(prompts, first)
        return first

    @torch.no_grad()
    def draft(self) -> None:
        """The first part of a step alone, recorded as one graph; to be timed, it moves nothing on.

        Raises:
            ValueError: no prompt was read yet.
        """
        self._require_started("draft")
        if self._drafting.on_host:
            return self._draft_in_place()
        return self._run("draft", self._draft_in_place)

    @torch.no_grad()
    def verify(self) -> None:
        """The target's pass over the last γ + 1 tokens of each text, to be timed: it moves nothing on.

        With a shared cache it is over places behind the text, as what it reads is not the text's.

        Raises:
            ValueError: no prompt was read yet, or a text has no more than γ tokens.
        """
        self._require_started("verify")
        shortest, allowed = min(self._lengths), "called when each text has more than γ tokens"
        require(shortest > self.draft_length, "verify", allowed, shortest, "take a step or two before")
        self._run("verify", self._verify_in_place)

    @property
    def _one_at_a_time(self) -> bool:
        return self._drafting.on_host

    @property
    def _report(self) -> Tensor:
        return self._told

    def _kept_by_recording(self) -> tuple[object, list[Tensor]]:
        return self.choice.sampled, [self._state.text, self._state.positions]

    def _launch(self) -> None:
        if self._drafting.on_host:
            self._drafting.draft(self.choice)
            self._run("settle", self._settle)
        else:
            self._run("step", self._whole)

    def _collected(self, gained: list[list[int]]) -> None:
        super()._collected(gained)
        self._drafting.extend(gained)

    def _draft_in_place(self) -> None:
        self._drafting.draft(self.choice)
        self._state.positions -= self.draft_length

    def _verify_in_place(self) -> None:
        ahead = self.draft_length if self.shared_cache else 0
        self._state.positions += ahead
        self._window.read()
        self._state.positions -= ahead

    def _whole(self) -> None:
        self._drafting.draft(self.choice)
        self._settle()

    def _settle(self) -> None:
        self._window.read()
        state, logits, last = self._state, self._window.logits, self.capacity - 1
        places = (state.text, state.positions, last, self._told)
        if self.choice.sampled:
            chance = (self.choice, self._memory)
            settle_drawn(logits, self._drafting.kept, *places, *chance, backend=self.backend)
        else:
            settle_greedy(logits, *places, self._likeliest, backend=self.backend)

    def _prepare(self, batch_size: int, capacity: int) -> None:
        if self.capacity >= capacity and self._state.batch_size == batch_size:
            return
        # The old caches, and the recordings that hold on to them, go before new ones are made.
        self._recordings.clear()
        self._choices: dict[bool, Choice] = {}
        self._states, self._state, self._drafting, self._window = [], None, None, None
        self.capacity = 0
        gamma = self.draft_length
        slots = capacity + gamma + 1  # drafts behind the last token of a text, and the target's own
        reading = self.models[:1] if self.shared_cache else self.models  # the prompts
        for model in reading:
            check_room(model, batch_size, slots)
        layout = torch.Tensor.contiguous if self.backend == "triton" else lay_out
        self._states = [StepState(model, batch_size, slots, layout) for model in reading]
        self._state = self._states[0]
        first = self.drafter.config.num_layers if self.shared_cache else 0
        settings = {"backend": self.backend, "settings": self.settings}
        self._window = Window(self._state, gamma + 1, first_layer=first, **settings)
        self._drafting = self._drafting_in(slots, layout)
        self._told = self._state.text.new_zeros(batch_size, gamma + 2)
        self._likeliest = Choice(batch_size * (gamma + 1), self.vocab_size, self.device)
        self._memory = VerdictMemory(batch_size, gamma + 1, self.vocab_size, self.device)
        self.capacity = capacity

    def _drafting_in(self, slots: int, layout: Layout) -> Drafting | SharedDrafting | Lookups:
        state, gamma = self._state, self.draft_length
        if isinstance(self.drafter, LookupDrafter):
            return Lookups(state, gamma, self.drafter)
        settings = {"backend": self.backend, "settings": self.drafter_settings}
        if self.shared_cache:
            part = state.cache.first_layers(self.drafter.config.num_layers)
            ahead = StepState(self.drafter, state.batch_size, slots, layout, part)
        else:
            ahead = self._states[1]
        ahead.text, ahead.positions = state.text, state.positions
        if self.shared_cache:
            return SharedDrafting(ahead, self._window, **settings)
        return Drafting(ahead, gamma, **settings)

    def _check_draws(self, temperature: float, seed: int) -> None:
        coldest = torch.finfo(torch.float32).tiny
        warm = lambda value: value == 0 or coldest <= value < float("inf")  # noqa: E731
        allowed = f"0, or at least {coldest:.2g} and finite"
        require_number(warm, "temperature", allowed, temperature, "0 is greedy")
        require_integer(0, "seed", seed, "any whole number will do")
        require(seed < 2**63, "seed", "below 2^63", seed, "any smaller one will do")

    def _choice_for(self, temperature: float, seed: int) -> Choice:
        batch, sampled = self._state.batch_size, temperature > 0
        if sampled not in self._choices:
            self._choices[sampled] = Choice(batch, self.vocab_size, self.device, temperature=temperature)
        self._choices[sampled].draw_with(temperature, seed)
        return self._choices[sampled]


def _check_drafter(target: Decoder, drafter: Decoder | LookupDrafter) -> None:
    for name, model in (("target", target), ("drafter", drafter)):
        allowed = isinstance(model, Decoder) or (name == "drafter" and isinstance(model, LookupDrafter))
        if not allowed:
            raise TypeError(
                f"{name} must be a Decoder{' or a LookupDrafter' * (name == 'drafter')}, got "
                f"{type(model).__name__}; pass the model itself"
            )
    if isinstance(drafter, LookupDrafter):
        return check_sizes(target.config.vocab_size, drafter.vocab_size)
    check_sizes(target.config.vocab_size, drafter.config.vocab_size)
    wanted, found = ((model.device, model.dtype) for model in (target, drafter))
    remedy = "load both alike"
    require(wanted == found, "drafter", f"on the target's device, in its dtype {wanted}", found, remedy)


def _check_first_layers(target: Decoder, drafter: Decoder | LookupDrafter) -> None:
    """Refuses to share a cache with other layers: their keys and values are not the target's."""
    remedy = "pass first_layers(target, n), or share no cache"
    if isinstance(drafter, LookupDrafter):
        require(False, "drafter", "the target's first layers", "a LookupDrafter", remedy)
    layers, own = drafter.model.layers, target.model.layers
    shared = all(mine is its for mine, its in zip(layers, own, strict=False))
    embedded = drafter.model.embed_tokens is target.model.embed_tokens
    fewer = len(layers) < len(own)
    found = f"{len(layers)} layers" if shared and embedded else "layers of its own"
    allowed = f"the target's own first layers, fewer than its {len(own)}"
    require(shared and embedded and fewer, "drafter", allowed, found, remedy)
