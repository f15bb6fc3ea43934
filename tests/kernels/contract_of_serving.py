"""Served through the kernels, a model writes what it writes through PyTorch's operations.

Run beside `contract.py`, whose remarks on interpreter and GPU hold here too; on a GPU steps are CUDA graphs.
"""

import pytest
import torch

from llmcourse.model import Decoder, DecoderConfig
from llmcourse.serving import (
    BlockPool,
    ChunkedPrefill,
    ContinuousBatching,
    Engine,
    PagedCache,
    PagedRunner,
    Request,
    Scheduler,
)
from tests.kernels.contract import DEVICE, seeded  # noqa: F401

SLOTS, BLOCKS, SIZE = 3, 20, 4


def tiny() -> Decoder:
    """Drawn on the CPU: the same model wherever it runs, one that repeats no token for ever."""
    model = Decoder(DecoderConfig(60, 32, 48, 2, 4, 2, 16, 64, qk_norm=True)).requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.to(DEVICE)


@pytest.mark.parametrize("policy", [ContinuousBatching(), ChunkedPrefill(5)], ids=["whole", "chunks"])
def test_the_same_tokens_as_by_the_reference(policy):
    model, answers = tiny(), {}
    prompts = [torch.randint(60, (length,)).tolist() for length in (1, 9, 6, 13)]
    for backend, overlap in (("reference", False), ("triton", True)):
        cache = PagedCache(model, BLOCKS, SIZE)
        cache.keys.fill_(torch.nan), cache.values.fill_(torch.nan)
        runner = PagedRunner(model, cache, max_running=SLOTS, backend=backend)
        engine = Engine(Scheduler(BlockPool(BLOCKS, SIZE), policy, max_running=SLOTS), runner, overlap)
        states = [engine.add(Request(str(i), prompt, max_tokens=4)) for i, prompt in enumerate(prompts)]
        for _ in engine.stream():
            pass
        answers[backend] = [state.generated for state in states]
    assert answers["triton"] == answers["reference"]
    assert len({tuple(answer) for answer in answers["triton"]}) == 4
