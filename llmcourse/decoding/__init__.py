"""From logits to text: how the next token is chosen, and the loop that chooses one after another.

history, processors     the texts so far; one signature for everything that changes logits
penalties               n-gram blocking, presence, frequency and repetition penalties
truncation              top-k, top-p, min-p, typical, epsilon, eta
params                  all settings in one place
sampling                greedy choice, random draw, entropy
source                  where logits come from: a model with a cache or without
loop, rows, stop_strings, errors     the autoregressive loop and how a text ends
beam                    beam search, with the tree of what it considered
contrastive             expert minus amateur
reread                  what a model thinks of texts that are there
metrics                 repetition and diversity of what came out
estimate                means over windows of text, with standard errors
form                    whether code parses and verse is regular
engine                  the fast path: static memory, kernels and CUDA graphs on a GPU
"""

from llmcourse.decoding.beam import (
    BeamNode,
    BeamSearch,
    Hypothesis,
    beam_search,
    beam_searches,
    stream_beams,
)
from llmcourse.decoding.contrastive import ContrastiveLogits, contrastive_logits
from llmcourse.decoding.engine import DecodeEngine
from llmcourse.decoding.errors import DecodingError, EverythingMaskedError, NonFiniteLogitsError
from llmcourse.decoding.history import History, Scope
from llmcourse.decoding.loop import Step, generate, stream
from llmcourse.decoding.metrics import distinct_n, repetition_rate
from llmcourse.decoding.params import SamplingParams
from llmcourse.decoding.penalties import FrequencyPenalty, NoRepeatNGram, PresencePenalty, RepetitionPenalty
from llmcourse.decoding.processors import Processor, Temperature, apply
from llmcourse.decoding.reread import Reread, reread
from llmcourse.decoding.rows import Generation
from llmcourse.decoding.sampling import entropy, greedy, sample
from llmcourse.decoding.source import CachedLogits, LogitsSource, UncachedLogits, as_source
from llmcourse.decoding.truncation import Epsilon, Eta, MinP, TopK, TopP, Typical

__all__ = [
    "BeamNode",
    "BeamSearch",
    "CachedLogits",
    "ContrastiveLogits",
    "DecodeEngine",
    "DecodingError",
    "Epsilon",
    "Eta",
    "EverythingMaskedError",
    "FrequencyPenalty",
    "Generation",
    "History",
    "Hypothesis",
    "LogitsSource",
    "MinP",
    "NoRepeatNGram",
    "NonFiniteLogitsError",
    "PresencePenalty",
    "Processor",
    "RepetitionPenalty",
    "Reread",
    "SamplingParams",
    "Scope",
    "Step",
    "Temperature",
    "TopK",
    "TopP",
    "Typical",
    "UncachedLogits",
    "apply",
    "as_source",
    "beam_search",
    "beam_searches",
    "contrastive_logits",
    "distinct_n",
    "entropy",
    "generate",
    "greedy",
    "repetition_rate",
    "reread",
    "sample",
    "stream",
    "stream_beams",
]
