"""Text written in blocks: one dial from autoregressive to non-autoregressive, passes as a second.

masks       who sees whom: causal over what is finished, both ways inside a block
low_rank    adapters of a frozen model that work on some tokens only, and embeddings of masks
adapters    a backbone with its adapters, which leave it as it is
stored      adapters as files, for one backbone alone
denoise     learning to fill blocks
source      one forward pass over the text and a block, with a cache and without
refinement  what a pass may settle: unmask the surest, or mask the least sure again
decode      the loop over blocks and passes, with a trace
quality     what the dial costs
"""

from llmcourse.blockwise.adapters import AdapterConfig, BlockDecoder
from llmcourse.blockwise.decode import BlockPass, generate, stream
from llmcourse.blockwise.denoise import Noise, denoising_loss, draw_noise, first_pass_loss
from llmcourse.blockwise.masks import EMPTY, FINISHED, block_mask, block_mask_by_definition, block_starts
from llmcourse.blockwise.quality import Quality, measure
from llmcourse.blockwise.refinement import REFINEMENTS, Refinement
from llmcourse.blockwise.source import BlockSource, CachedBlocks, UncachedBlocks
from llmcourse.blockwise.stored import BLOCK_ADAPTERS, load_adapters, save_adapters

__all__ = [
    "BLOCK_ADAPTERS",
    "EMPTY",
    "FINISHED",
    "REFINEMENTS",
    "AdapterConfig",
    "BlockDecoder",
    "BlockPass",
    "BlockSource",
    "CachedBlocks",
    "Noise",
    "Quality",
    "Refinement",
    "UncachedBlocks",
    "block_mask",
    "block_mask_by_definition",
    "block_starts",
    "denoising_loss",
    "draw_noise",
    "first_pass_loss",
    "generate",
    "load_adapters",
    "measure",
    "save_adapters",
    "stream",
]
