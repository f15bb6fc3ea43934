"""The whole course on one model: after each step tokens a second, the roofline's limit, and what it cost.

    every text anew     all of the text through the model for each token               chapter 1
    KV cache            one token through the model; attention by its definition
    fused attention     scores that never reach the memory (FlashAttention)            chapter 2
    decode engine       fused matrices and kernels, on a GPU one graph a token
    continuous batching many texts, each step for all that are being written           chapter 3
    speculation         a small model drafts, the large one verifies                   chapter 4
    low-bit weights     matrices in codes of few bits                                  chapter 5
    low-bit speculation both of them
    low-bit cache       keys and values in codes, by the ordinary model: the engine's kernels read 16 bits

All but the last three give the text that the model writes anyway, and are held to that: `kept` is the share
of each text up to the first other token. In 16 bits it may turn where two tokens are as good as equal. What
the last three lose is a matter of distributions, and `kl` and `agreement` see it on text that is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile

import torch
from jaxtyping import Int
from torch import Tensor

from llmcourse.attention import attention_reference, sdpa
from llmcourse.costs import Precision, Step
from llmcourse.decoding.engine import DecodeEngine
from llmcourse.decoding.errors import require, require_integer
from llmcourse.decoding.estimate import windows_of
from llmcourse.decoding.loop import generate
from llmcourse.decoding.source import CachedLogits, LogitsSource, UncachedLogits
from llmcourse.hardware import dtype_name
from llmcourse.model import Decoder
from llmcourse.quantization.cache import QuantizedKVCache, quantized_cache_logits
from llmcourse.quantization.cache_error import cache_errors
from llmcourse.quantization.layers import twin
from llmcourse.quantization.models import quantize
from llmcourse.quantization.quality import compare
from llmcourse.quantization.schemes import scheme_of
from llmcourse.roofline import Limits, predict_step
from llmcourse.serving import (
    BlockPool,
    ContinuousBatching,
    Engine,
    PagedCache,
    PagedRunner,
    Request,
    RooflineTime,
    Scheduler,
    measure,
    replay,
    simulate,
)
from llmcourse.speculative.engine import SpeculativeEngine
from llmcourse.timing import Timing, synchronize

Texts = Sequence[Sequence[int]]
Moved = Sequence[tuple[float, float]]  # KL and agreement of each domain
STAGES = (
    "every text anew",
    "KV cache",
    "fused attention",
    "decode engine",
    "continuous batching",
    "speculation",
    "low-bit weights",
    "low-bit speculation",
    "low-bit cache",
)
BLOCK = 16  # tokens of a block of the paged cache


@dataclass(frozen=True)
class Stage:
    """What the model is after a step of the course.

    Attributes:
        name: one of `STAGES`.
        texts: that are written at once.
        tokens_per_s: of all of them, reading the prompts included.
        spread: as `Timing.spread`, over prompts.
        limit: tokens a second by the roofline; of speculation, with the tokens that a step brought here.
        kept: share of what was written that is the text of the model itself, token by token; the mean.
        kl: of the model's distributions to those here, nats a token; the mean over domains.
        agreement: share of places with the same favourite, in [0, 1].
        more: what else there is to know: `tokens_a_step`, `acceptance`, `weight_bytes`, `cache_token_bytes`.
    """

    name: str
    texts: int
    tokens_per_s: float
    spread: float
    limit: float
    kept: float
    kl: float = 0.0
    agreement: float = 1.0
    more: Mapping[str, int | float] = field(default_factory=dict)

    @property
    def share_of_limit(self) -> float:
        return self.tokens_per_s / self.limit

    def row(self) -> dict[str, str | int | float]:
        """All of it by name, as it is recorded, and as `figures.pipeline_steps` reads it."""
        named = {"stage": self.name, "texts": self.texts, "tokens_per_s": self.tokens_per_s}
        named |= {"spread": self.spread, "limit": self.limit, "ratio_limit": self.share_of_limit}
        return named | {"kept": self.kept, "kl": self.kl, "agreement": self.agreement, **self.more}

    def __str__(self) -> str:
        speed = f"{self.tokens_per_s:10,.0f} tok/s of {self.limit:,.0f} ({self.share_of_limit:.0%})"
        cost = f"KL {self.kl:.4f}, the same favourite {self.agreement:.1%}"
        return f"{self.name:20}{speed}, {self.texts} at once; {self.kept:.0%} of the text kept; {cost}"


@dataclass
class Pipeline:
    """A model and all that the course does to it.

    Args:
        target: in the dtype and on the device to measure; engines fuse its matrices.
        drafter: a smaller model of the same vocabulary, alike.
        prompts: token ids; stages that write one text at a time write all of them, one by one.
        streams: token ids by domain, on which distributions are compared.
        machine: whose limits stand beside.
        new_tokens: that are written behind each prompt.
        texts: at once, with continuous batching; prompts are taken again where there are fewer.
        draft_length: γ.
        scheme: of the weights; one that looks at text needs `calibration`.
        cache_bits: of keys and values.
        length, max_windows: of the text that distributions are compared on.

    Raises:
        ValueError: no prompt, or numbers out of their range.
    """

    target: Decoder
    drafter: Decoder
    prompts: Sequence[Sequence[int]]
    streams: Mapping[str, Int[Tensor, " _"]]
    machine: Limits
    new_tokens: int = 128
    texts: int = 16
    draft_length: int = 4
    scheme: str = "int4"
    cache_bits: int = 8
    calibration: Int[Tensor, "N T"] | None = None
    length: int = 128
    max_windows: int | None = 16

    def __post_init__(self):
        require(len(self.prompts) > 0, "prompts", "at least one", "none", "give some text to go on with")
        require_integer(2, "new_tokens", self.new_tokens, "128 take seconds")
        require_integer(1, "texts", self.texts, "16 are a small server's")
        self._own = [each.tokens for each in self._generated(CachedLogits(self.target), self.prompts)]
        self._low_bit: tuple[Decoder, Moved] | None = None

    def run(self, names: Sequence[str] = STAGES) -> Iterator[Stage]:
        """The stages, one after the other, each as soon as it was measured.

        Raises:
            ValueError: a name that is none of `STAGES`.
        """
        for name in names:
            require(name in STAGES, "stage", f"one of {', '.join(STAGES)}", repr(name), "choose among them")
        for name in names:
            yield getattr(self, f"_{name.replace(' ', '_').replace('-', '_').lower()}")()

    def _every_text_anew(self) -> Stage:
        step = Step.prefill(1, self._context, cache=False, logit_positions=1)
        return self._alone("every text anew", UncachedLogits(self.target), step)

    def _kv_cache(self) -> Stage:
        return self._alone("KV cache", CachedLogits(self._attending(attention_reference)))

    def _fused_attention(self) -> Stage:
        return self._alone("fused attention", CachedLogits(self._attending(sdpa)))

    def _decode_engine(self) -> Stage:
        return self._one_by_one("decode engine", self._by_engine(self.target), self._limit())

    def _low_bit_weights(self) -> Stage:
        model, measured = self._in_few_bits()
        write, limit = self._by_engine(model), self._limit(self._low_bit_precision())
        return self._one_by_one("low-bit weights", write, limit, measured, weight_bytes=_weight_bytes(model))

    def _speculation(self) -> Stage:
        return self._speculated("speculation", self.target, self._precision)

    def _low_bit_speculation(self) -> Stage:
        model, measured = self._in_few_bits()
        return self._speculated("low-bit speculation", model, self._low_bit_precision(), measured)

    def _low_bit_cache(self) -> Stage:
        target, bits = self.target, self.cache_bits
        moved = [cache_errors(target, rows, bits) for rows in self._windows()]
        measured = [(each.kl_divergence, each.agreement) for each in moved]
        dtype = dtype_name(target.dtype)
        sizes = (
            {"cache": "int8", "cache_group_size": target.config.head_dim} if bits == 8 else {"cache": "int4"}
        )
        limit = self._limit(Precision(dtype, dtype, **sizes))
        held = QuantizedKVCache.of(target, 1, 1, bits=bits).bytes_per_token
        source = quantized_cache_logits(target, bits)
        write = partial(self._written, source)
        return self._one_by_one("low-bit cache", write, limit, measured, cache_token_bytes=held)

    def _continuous_batching(self) -> Stage:
        """Answers of a quarter to all of the tokens, into half as many slots as there are texts."""
        count, slots = self.texts, max(1, self.texts // 2)
        chosen = [number % len(self.prompts) for number in range(count)]
        lengths = [max(1, self.new_tokens * (1 + number % 4) // 4) for number in range(count)]
        requests = [
            Request(str(number), self.prompts[prompt], max_tokens=length)
            for number, (prompt, length) in enumerate(zip(chosen, lengths, strict=True))
        ]
        longest = max(map(len, self.prompts)) + self.new_tokens
        blocks = slots * -(-longest // BLOCK) + 1
        cache = PagedCache(self.target, blocks, BLOCK)
        runner = PagedRunner(self.target, cache, max_running=slots, max_length=longest)

        def scheduler() -> Scheduler:
            pool = BlockPool(blocks, BLOCK, reuse_prefixes=False)
            return Scheduler(pool, ContinuousBatching(), max_running=slots)

        texts = _answers(requests, Engine(scheduler(), runner, overlap=True))  # which warms up, too
        traces = [replay(requests, Engine(scheduler(), runner, overlap=True)) for _ in range(3)]
        speeds = [measure(trace).output_tokens_per_s for trace in traces]
        cost = RooflineTime(self.target.config, self.machine, self._precision)
        limit = measure(simulate(requests, scheduler(), cost)).output_tokens_per_s
        times = Timing(tuple(1 / speed for speed in speeds))
        kept = _kept(texts, [self._own[prompt] for prompt in chosen])
        return Stage("continuous batching", slots, 1 / times.median_s, times.spread, limit, kept)

    def _speculated(self, name: str, target: Decoder, precision: Precision, measured: Moved = ()) -> Stage:
        engine, gained = SpeculativeEngine(target, self.drafter, draft_length=self.draft_length), []

        def write(prompt: Sequence[int]) -> list[int]:
            found = engine.generate([list(prompt)], self.new_tokens)
            gained.append(((len(found.tokens[0]) - 1) / found.num_steps, found.tally.rate))
            return found.tokens[0]

        stage = self._one_by_one(name, write, 1.0, measured)
        tokens_a_step, acceptance = (sum(each) / len(each) for each in zip(*gained, strict=True))
        gamma, context = self.draft_length, self._context
        drafting = gamma * self._step_s(self.drafter, Step.decode(1, context), self._precision)
        verifying = self._step_s(target, Step.chunk(1, gamma + 1, context - 1), precision)
        limit = tokens_a_step / (drafting + verifying)
        more = {"tokens_a_step": tokens_a_step, "acceptance": acceptance, "gamma": gamma}
        found = {**vars(stage), "limit": limit, "more": more}
        return Stage(**found)

    def _alone(self, name: str, source: LogitsSource, step: Step | None = None) -> Stage:
        return self._one_by_one(name, partial(self._written, source), self._limit(step=step))

    def _one_by_one(
        self,
        name: str,
        write: Callable[[Sequence[int]], list[int]],
        limit: float,
        measured: Moved = (),
        **more: int | float,
    ) -> Stage:
        """One text at a time, after what is slow once: on a CPU the longest is written before, on a GPU all
        are, for kernels are prepared for every new length."""
        texts, times, device = [], [], self.target.device
        before = self.prompts if device.type == "cuda" else [max(self.prompts, key=len)]
        for prompt in (*before, *self.prompts):
            synchronize(device)
            began = time.perf_counter()
            texts.append(write(prompt))
            synchronize(device)
            times.append(time.perf_counter() - began)
        timing = Timing(tuple(times[len(before) :]))
        speed, kept = self.new_tokens / timing.median_s, _kept(texts[len(before) :], self._own)
        quality = {}
        if measured:
            means = (sum(each) / len(each) for each in zip(*measured, strict=True))
            quality = dict(zip(("kl", "agreement"), means, strict=True))
        return Stage(name, 1, speed, timing.spread, limit, kept, **quality, more=more)

    def _written(self, source: LogitsSource, prompt: Sequence[int]) -> list[int]:
        return self._generated(source, [prompt])[0].tokens

    def _generated(self, source: LogitsSource, prompts: Sequence[Sequence[int]]) -> list:
        ids = [list(prompt) for prompt in prompts]
        return generate(source, ids, max_new_tokens=self.new_tokens, eos_token_ids=())

    def _by_engine(self, model: Decoder) -> Callable[[Sequence[int]], list[int]]:
        engine = DecodeEngine(model)

        def write(prompt: Sequence[int]) -> list[int]:
            engine.start([list(prompt)], max(map(len, self.prompts)) + self.new_tokens)
            return engine.decode(self.new_tokens)[0].tolist()

        return write

    def _attending(self, attention: Callable[..., Tensor]) -> Decoder:
        model = twin(self.target)
        model.attention = attention
        return model

    def _in_few_bits(self) -> tuple[Decoder, Moved]:
        """The model in codes, made once, and how far its distributions moved."""
        if self._low_bit is None:
            model = quantize(self.target, self.scheme, self.calibration, progress=False)
            window = {"length": self.length, "max_windows": self.max_windows}
            found = compare(self.target, model, self.streams, **window)
            self._low_bit = model, [(each.kl.mean, each.agreement.mean) for each in found]
        return self._low_bit

    def _windows(self) -> list[Int[Tensor, "N T"]]:
        """Rows of each domain, those that `compare` looks at."""
        device = self.target.device
        cut = (windows_of(domain, each, self.length) for domain, each in self.streams.items())
        return [torch.stack([w[:-1] for w in each[: self.max_windows]]).to(device) for each in cut]

    @property
    def _precision(self) -> Precision:
        return Precision.uniform(dtype_name(self.target.dtype))

    def _low_bit_precision(self) -> Precision:
        """Codes in the layers, which is what `quantize` puts there; the head stays as it is."""
        c, dtype = self.target.config, dtype_name(self.target.dtype)
        widths = (c.hidden_size, c.num_heads * c.head_dim, c.intermediate_size)
        scheme = scheme_of(self.scheme).fitted(widths)
        stored = "int8" if scheme.bits > 4 else "int4"  # kernels want fewer bits in the room of 4
        return Precision(stored, dtype, head=dtype, group_size=scheme.group_size)

    @property
    def _context(self) -> int:
        """Tokens that a step looks at, on average."""
        return round(sum(map(len, self.prompts)) / len(self.prompts)) + self.new_tokens // 2

    def _limit(self, precision: Precision | None = None, step: Step | None = None) -> float:
        """Tokens a second of one text."""
        step = Step.decode(1, self._context) if step is None else step
        return 1 / self._step_s(self.target, step, precision or self._precision)

    def _step_s(self, model: Decoder, step: Step, precision: Precision) -> float:
        return predict_step(model.config, step, self.machine, precision).time_s


def _answers(requests: Sequence[Request], engine: Engine) -> list[list[int]]:
    """What an engine writes to each of them."""
    for request in requests:
        engine.add(request)
    answers: dict[str, list[int]] = {request.id: [] for request in requests}
    for output in engine.stream():
        answers[output.state.id].append(output.token)
    return list(answers.values())


def _kept(texts: Texts, own: Texts) -> float:
    """The mean share of each text before the first token that is not the model's own."""
    shares = []
    for text, expected in zip(texts, own, strict=True):
        same = takewhile(lambda pair: pair[0] == pair[1], zip(text, expected, strict=False))
        shares.append(sum(1 for _ in same) / len(text))
    return sum(shares) / len(shares)


def _weight_bytes(model: Decoder) -> int:
    """All that the model holds, once where it is tied."""
    held = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
    return sum(held.values())
