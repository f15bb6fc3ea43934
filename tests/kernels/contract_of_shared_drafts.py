"""Drafts in the target's own cache: through the kernels an engine writes what it writes by the reference.

Run beside `contract.py`, whose remarks on interpreter and GPU hold here too; on a GPU a step is a CUDA graph.
"""

import pytest
import torch

from llmcourse.model import Decoder, DecoderConfig
from llmcourse.speculative.early_layers import first_layers
from llmcourse.speculative.engine import SpeculativeEngine
from tests.kernels.contract import DEVICE, seeded  # noqa: F401


def tiny() -> Decoder:
    model = Decoder(DecoderConfig(60, 32, 48, 3, 4, 2, 16, 64)).to(DEVICE).requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("batch", [1, 2])
def test_the_same_tokens_as_by_the_reference(batch):
    """One row is read to where verification takes it; of more rows the states are copied there."""
    model, prompts = tiny(), [[5, 6, 7], [1, 2, 3, 4, 5]][:batch]
    written = {}
    for backend in ("reference", "triton"):
        settings = {"draft_length": 2, "backend": backend, "shared_cache": True}
        engine = SpeculativeEngine(model, first_layers(model, 1), **settings)
        engine.start(prompts, 32)
        engine.draft()
        engine.verify()  # to be timed, and without effect
        written[backend] = [engine.step() for _ in range(3)]
    assert written["triton"] == written["reference"]
