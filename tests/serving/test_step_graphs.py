"""Sizes of recorded steps, and that filling a step up to one of them changes no answer.

Graphs need a GPU; here the same steps, filled up as for a graph, are launched operation by operation.
"""

import pytest
import torch

from llmcourse.serving import (
    BlockPool,
    Chunk,
    Engine,
    PagedCache,
    PagedRunner,
    Request,
    RequestState,
    Scheduler,
)
from llmcourse.serving.step_graphs import CHUNK_TOKENS, DRAFTS, MOST_CHUNKS, StepGraph, StepGraphs
from llmcourse.serving.step_inputs import StepInputs, StepSize
from llmcourse.serving.transfer import Transfer
from tests.serving.fakes import POLICIES
from tests.serving.test_paged_runner import SIZE, alone, requests, tiny
from tests.serving.test_paged_speculation import speculating


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(StepGraph, "__init__", _remember)
    monkeypatch.setattr(StepGraph, "__call__", _run)


def _remember(self, decoder, builder, size, logits, pool):
    self.decoder, self.size, self.logits = decoder, size, logits[: size.rows]


def _run(self, inputs):
    sent = Transfer(inputs, self.decoder.model.device).send(inputs)
    return self.decoder.step(StepInputs(*sent), self.size, self.logits)


def graphs(slots: int = 70) -> StepGraphs:
    model = tiny()
    runner = PagedRunner(model, PagedCache(model, 4, SIZE), max_running=slots, max_length=5 * SIZE)
    return StepGraphs(runner._decoder, runner._builder)


@pytest.mark.parametrize("budget", [1, 64, 128, 129, 300, 2048, 5000])
def test_what_is_recorded_ahead_is_all_that_such_a_budget_needs(budget):
    made = graphs()
    sizes = made.sizes(budget)
    state = RequestState(Request("a", [1]), (0, 0))
    one, most = Chunk(state, 3, 4, True), min(budget, CHUNK_TOKENS[-1])
    taken = {
        made.graph_for([one] * decodes, [Chunk(state, 0, tokens, False)]).size
        for tokens in (2, 128, 129, 1000, most)
        for decodes in (0, 1, 64, 65, 70)
        if 2 <= tokens <= most
    }
    assert taken <= set(sizes)
    assert max(size.tokens for size in sizes) < 2 * max(most, CHUNK_TOKENS[0])
    assert {size.decodes for size in sizes if not size.tokens} >= {1, 2, 4, 8, 64, 70}
    assert all(size.chunks == (MOST_CHUNKS if size.tokens else 0) and size.blocks == 5 for size in sizes)


@pytest.mark.parametrize("slots", [3, 70])
@pytest.mark.parametrize("longest", [1, 4, 32])
@pytest.mark.parametrize("budget", [0, 64, 300, 5000])
def test_what_is_recorded_ahead_is_all_that_drafts_need(budget, longest, slots):
    made = graphs(slots)
    sizes = set(made.sizes(budget, longest))
    state = RequestState(Request("a", [1]), (0, 0))
    most = min(longest * min(slots, MOST_CHUNKS), DRAFTS[-1])
    taken = set()
    for drafts in {1, most // 2, 16, 17, most} & set(range(1, most + 1)):
        fewest = drafts - (-drafts // longest)  # and a token of each text
        for tokens in {fewest, drafts + min(drafts, slots, MOST_CHUNKS), min(budget, CHUNK_TOKENS[-1])}:
            if tokens >= fewest:
                piece = Chunk(state, 0, tokens, True)
                taken |= {made.graph_for([piece] * one, [piece], drafts).size for one in (0, 1, slots)}
    assert taken <= sizes
    assert {size.drafts for size in taken} == {size.drafts for size in sizes} - {0}
    assert sizes - set(made.sizes(budget)) == {size for size in sizes if size.drafts}
    assert made.sizes(budget, longest)[0].rows == max(size.rows for size in sizes)


def test_the_largest_is_recorded_first():
    sizes = graphs().sizes(300)
    assert sizes[0] == StepSize(70, MOST_CHUNKS, 512, 512, 5)
    assert sizes[-1] == StepSize(1, 0, 0, 0, 5)
    for mixed in (True, False):
        held = [(size.tokens, size.decodes) for size in sizes if bool(size.tokens) == mixed]
        assert held == sorted(held, reverse=True)
    assert not any(size.tokens for size in graphs().sizes())


@pytest.mark.parametrize("drafts", [False, True], ids=["without drafts", "with drafts"])
@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlapping"])
@pytest.mark.parametrize("policy", ["continuous", "chunked"])
def test_filling_a_step_up_changes_no_answer(monkeypatch, policy, overlap, drafts):
    monkeypatch.setattr("llmcourse.serving.step_graphs.CHUNK_TOKENS", (8, 16, 32))
    monkeypatch.setattr("llmcourse.serving.step_graphs.DRAFTED_TOKENS", (16, 32, 64))
    model, num_blocks = tiny(), 20
    cache = PagedCache(model, num_blocks, SIZE)
    cache.keys.fill_(torch.nan), cache.values.fill_(torch.nan)
    runner = PagedRunner(model, cache, max_running=5)
    runner._graphs = StepGraphs(runner._decoder, runner._builder)
    scheduler = Scheduler(BlockPool(num_blocks, SIZE), POLICIES[policy], max_running=5)
    engine = Engine(scheduler, runner, overlap)
    wanted = requests()[:6]
    written = [alone(model, request) for request in wanted]
    states = [engine.add(r) for r in (speculating(model, wanted, written) if drafts else wanted)]
    list(engine.stream())
    assert [state.generated for state in states] == written
    assert {size.tokens > 0 for size in runner._graphs._graphs} == {True, False}
    assert {size.drafts for size in runner._graphs._graphs} == ({0, DRAFTS[0]} if drafts else {0})
    assert any(state.num_reused for state in states)


def test_where_drafts_are_recorded_ahead_nobody_waits_for_the_first():
    model = tiny()
    runner = PagedRunner(model, PagedCache(model, 20, SIZE), max_running=5)
    runner._graphs = StepGraphs(runner._decoder, runner._builder)
    runner.record(8, drafts=7)
    ahead = set(runner._graphs._graphs)
    wanted = requests()[:6]
    written = [alone(model, request) for request in wanted]
    engine = Engine(Scheduler(BlockPool(20, SIZE), POLICIES["chunked"], max_running=5), runner)
    states = [engine.add(request) for request in speculating(model, wanted, written)]
    list(engine.stream())
    assert [state.generated for state in states] == written and any(state.num_drafted for state in states)
    assert set(runner._graphs._graphs) == ahead
    with pytest.raises(ValueError, match="drafts must be an integer of at least 0, got -1"):
        runner.record(drafts=-1)


def test_a_step_that_no_graph_holds_has_none():
    taken = graphs()
    state = RequestState(Request("a", [1] * 9), (0, 0))
    pieces = [Chunk(state, 0, 9, True)] * (MOST_CHUNKS + 1)
    assert taken.graph_for([], pieces) is None
    assert taken.graph_for([], pieces[1:]).size == StepSize(0, MOST_CHUNKS, 256, 256, 5)
    assert taken.graph_for([], [Chunk(state, 0, CHUNK_TOKENS[-1] + 1, False)]) is None
    assert taken.graph_for([Chunk(state, 3, 4, True)] * 3, []).size == StepSize(4, 0, 0, 0, 5)


def test_a_step_with_drafts_takes_the_smallest_graph_that_holds_them():
    taken, chunk = graphs(), Chunk(RequestState(Request("a", [1] * 9), (0, 0)), 8, 14, True)
    assert taken.graph_for([], [chunk] * 3, 15).size == StepSize(0, MOST_CHUNKS, 32, 32, 5, DRAFTS[0])
    assert taken.graph_for([], [chunk] * 4, 20).size.drafts == DRAFTS[1]
    assert taken.graph_for([], [chunk], DRAFTS[1] + 1) is None
