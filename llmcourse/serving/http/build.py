"""From a checkpoint to what is served: the one place where model, cache, scheduler and runner meet."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch

from llmcourse.decoding.errors import require, require_integer, require_number
from llmcourse.hardware import default_device, free_bytes, this_machine
from llmcourse.model import Decoder
from llmcourse.pretrained import Pretrained, load
from llmcourse.serving.block_pool import BlockPool
from llmcourse.serving.http.fields import MAX_DRAFT_LENGTH
from llmcourse.serving.http.prompts import ServedModel
from llmcourse.serving.http.service import Service
from llmcourse.serving.paged_cache import PagedCache, blocks_that_fit, bytes_of_block
from llmcourse.serving.paged_runner import PagedRunner
from llmcourse.serving.policies import ChunkedPrefill, ContinuousBatching, TraditionalBatching
from llmcourse.serving.scheduler import Scheduler
from llmcourse.serving.speculation import Speculation

DTYPES = ("float32", "bfloat16", "float16")
POLICIES = {
    "chunked": ChunkedPrefill,
    "continuous": ContinuousBatching,
    "traditional": TraditionalBatching,
}
BLOCK_SIZE = 16
MakeSpeculation = Callable[[int, int], Speculation]  # of the size of the vocabulary and a draft length


@dataclass(frozen=True)
class ServiceSettings:
    """What is served, and how much of it at once; checked before any weights are read.

    Attributes:
        model: as `pretrained.load` takes it; clients ask for it by the same name.
        policy: a key of `POLICIES`.
        max_running: requests that run at once.
        num_blocks: blocks of 16 tokens for keys and values.
        memory_gb: the same in gigabytes (10⁹ bytes). With neither, enough for `max_running` texts of the
            longest kind, or as much of it as four fifths of the free memory hold.
        queue_limit: requests that may wait.
        grace_s: seconds that answers under way get when the server is told to end.
        device: the best one here if None.
        dtype: of the weights, by name.

    Raises:
        ValueError: a value out of its range, more slots than the policy serves, blocks as well as memory,
            or a device that is not here.
    """

    model: str = "base"
    policy: str = "chunked"
    max_running: int = 64
    num_blocks: int | None = None
    memory_gb: float | int | None = None
    queue_limit: int = 1024
    grace_s: float | int = 5.0
    device: str | None = None
    dtype: str = "float32"

    def __post_init__(self):
        one_of = f"one of {', '.join(POLICIES)}"
        names = f"one of {', '.join(DTYPES)}"
        require(self.dtype in DTYPES, "dtype", names, repr(self.dtype), "use 'float32'")
        require(self.policy in POLICIES, "policy", one_of, repr(self.policy), "use 'chunked'")
        require_integer(1, "queue_limit", self.queue_limit, "use 1024")
        never = "use 0 to end at once"
        require_number(lambda s: 0 <= s < math.inf, "grace_s", "at least 0 and finite", self.grace_s, never)
        if self.num_blocks is not None:
            require_integer(1, "num_blocks", self.num_blocks, "leave it out to fill the free memory")
            both = self.memory_gb is not None
            require(
                not both, "num_blocks", "left out where memory_gb is given", self.num_blocks, "choose one"
            )
        if self.memory_gb is not None:
            remedy = "leave it out to fill the free memory"
            require_number(
                lambda gb: 0 < gb < math.inf, "memory_gb", "positive and finite", self.memory_gb, remedy
            )
        self.scheduler(1)
        this_machine(self.device)

    def scheduler(self, num_blocks: int) -> Scheduler:
        """The scheduler over so many blocks."""
        pool = BlockPool(num_blocks, BLOCK_SIZE)
        return Scheduler(pool, POLICIES[self.policy](), max_running=self.max_running)


def build(
    settings: ServiceSettings,
    drafters: Mapping[str, MakeSpeculation] = MappingProxyType({}),
    load: Callable[..., Pretrained] = load,
) -> tuple[Service, ServedModel]:
    """Loads the model and makes the engine that serves it.

    Args:
        load: in place of `pretrained.load`, for checkpoints that it does not read, such as quantized ones.
        drafters: kinds of speculation that clients may ask for; on a GPU, steps with drafts are then recorded
            ahead too.

    Raises:
        ValueError: as `pretrained.load`; or the blocks do not fit into memory.
        FileNotFoundError: there is no such model.
    """
    device = settings.device or default_device()
    model, tokenizer = load(settings.model, device=device, dtype=getattr(torch, settings.dtype))
    num_blocks = choose_num_blocks(model, settings)
    cache = PagedCache(model, num_blocks, BLOCK_SIZE)
    scheduler = settings.scheduler(num_blocks)
    runner = PagedRunner(model, cache, max_running=scheduler.max_running)
    policy = scheduler.policy
    chunk_tokens = policy.token_budget if isinstance(policy, ChunkedPrefill) else 0
    runner.record(chunk_tokens, drafts=MAX_DRAFT_LENGTH if drafters else 0, progress=True)
    overlap = model.device.type == "cuda"  # a CPU that computes and schedules gains nothing
    service = Service(scheduler, runner, queue_limit=settings.queue_limit, overlap=overlap)
    config = model.config
    eos = frozenset(config.eos_token_ids)
    made = {kind: partial(make, config.vocab_size) for kind, make in drafters.items()}
    return service, ServedModel(settings.model, tokenizer, config.max_position_embeddings, eos, made)


def choose_num_blocks(model: Decoder, settings: ServiceSettings) -> int:
    """As many as were asked for, or as many as can be used and fit.

    Raises:
        ValueError: the memory given or free does not hold a single one.
    """
    if settings.num_blocks is not None:
        return settings.num_blocks
    if settings.memory_gb is not None:
        bytes_each = bytes_of_block(model, BLOCK_SIZE)
        fit = int(settings.memory_gb * 1e9 / bytes_each)
        allowed = f"at least {bytes_each / 1e9:.6f}, one block of {BLOCK_SIZE} tokens"
        require(fit >= 1, "memory_gb", allowed, settings.memory_gb, "give more")
        return fit
    longest = -(-model.config.max_position_embeddings // BLOCK_SIZE)
    useful = settings.max_running * longest
    return useful if free_bytes(model.device) is None else min(useful, blocks_that_fit(model, BLOCK_SIZE))
