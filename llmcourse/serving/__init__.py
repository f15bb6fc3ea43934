"""Many requests at once: which of them compute what in a step, and where their keys and values lie.

request       what is asked for, and how far it has come
block_pool    memory in blocks, counted by their users
prefix_index  finding blocks that hold the beginning of a text
schedule      what one step computes, ranges of tokens, and brings
policies      traditional batching, continuous batching, chunked prefill
urgency       priorities that age
batch         slots and block tables: admission, growth, preemption
step_plan     a step in the making
in_flight     a step that was launched and is not resolved
speculation   what is asked of those who draft for a request
verifying     a request whose drafts are in flight
scheduler     schedule → run → postprocess, or advance and resolve
runner        what the scheduler asks of a model
engine        the loop around scheduler and runner, overlapping or not
paged_cache   keys and values in blocks
step_inputs   chunks as arrays, which reach the device by
transfer      many arrays at once
paged_decoder a model over the paged cache, and
step_graphs   its steps as CUDA graphs
other_choices top-p, penalties and the rest, for those who ask
drafted_chunk the drafts of a request in a step, judged
paged_runner  all of this as the scheduler's runner
clock         the same scheduler on a virtual clock, with
step_time     a roofline's seconds for each step
replay        the same requests on a real engine
lecture_grid  the lecture's four slots and eight steps
workload      requests as they might come
metrics       TTFT, TPOT, ITL, throughput, goodput
http          an OpenAI-compatible server around the engine; imported by whoever serves
"""

from llmcourse.serving.block_pool import BlockError, BlockPool, DoubleFree, OutOfBlocks, UnknownBlock
from llmcourse.serving.clock import Cell, ClockStep, Cost, Timeline, Trace, one_second, simulate
from llmcourse.serving.engine import Engine
from llmcourse.serving.lecture_grid import grid, lecture_trace
from llmcourse.serving.metrics import Metrics, Objective, measure
from llmcourse.serving.paged_cache import PagedCache, blocks_that_fit
from llmcourse.serving.paged_runner import PagedRunner
from llmcourse.serving.policies import ChunkedPrefill, ContinuousBatching, Plan, Policy, TraditionalBatching
from llmcourse.serving.replay import replay
from llmcourse.serving.request import PENDING, Request, RequestState
from llmcourse.serving.runner import FunctionRunner, OverlappingRunner, Runner
from llmcourse.serving.schedule import Chunk, Output, Schedule
from llmcourse.serving.scheduler import DuplicateId, NeverFits, Scheduler, StepOrder, UnknownRequest
from llmcourse.serving.speculation import Drafts, Speculation, Speculator
from llmcourse.serving.step_time import RooflineTime
from llmcourse.serving.workload import (
    Arrivals,
    LogNormal,
    Uniform,
    bursty,
    make_requests,
    nano_vllm_requests,
    padded,
    poisson,
)

__all__ = [
    "PENDING",
    "Arrivals",
    "BlockError",
    "BlockPool",
    "Cell",
    "Chunk",
    "ChunkedPrefill",
    "ClockStep",
    "ContinuousBatching",
    "Cost",
    "DoubleFree",
    "Drafts",
    "DuplicateId",
    "Engine",
    "FunctionRunner",
    "LogNormal",
    "Metrics",
    "NeverFits",
    "Objective",
    "OutOfBlocks",
    "Output",
    "OverlappingRunner",
    "PagedCache",
    "PagedRunner",
    "Plan",
    "Policy",
    "Request",
    "RequestState",
    "RooflineTime",
    "Runner",
    "Schedule",
    "Scheduler",
    "Speculation",
    "Speculator",
    "StepOrder",
    "Timeline",
    "Trace",
    "TraditionalBatching",
    "Uniform",
    "UnknownBlock",
    "UnknownRequest",
    "blocks_that_fit",
    "bursty",
    "grid",
    "lecture_trace",
    "make_requests",
    "measure",
    "nano_vllm_requests",
    "one_second",
    "padded",
    "poisson",
    "replay",
    "simulate",
]
