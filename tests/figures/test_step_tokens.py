"""Tokens of each step and the gaps that one reader feels: a whole prompt stalls, pieces do not."""

import pytest

from llmcourse.figures.step_tokens import gaps_of, longest_wait, plot_step_tokens, step_tokens
from llmcourse.serving.block_pool import BlockPool
from llmcourse.serving.clock import simulate
from llmcourse.serving.policies import ChunkedPrefill, ContinuousBatching
from llmcourse.serving.request import Request
from llmcourse.serving.scheduler import Scheduler

REQUESTS = [Request("reader", [1], max_tokens=20), Request("long", range(40), max_tokens=2, arrival_s=2.5)]


def serve(policy):
    served = Scheduler(BlockPool(100), policy, max_running=4)
    return simulate(REQUESTS, served, lambda schedule: 0.5 + 0.1 * schedule.num_tokens)


@pytest.fixture(scope="module")
def traces():
    return {"whole": serve(ContinuousBatching()), "chunked": serve(ChunkedPrefill(8))}


def test_every_token_is_counted_once_and_for_what_it_is(traces):
    for trace in traces.values():
        steps = step_tokens(trace)
        assert sum(step.prompt for step in steps) == 41
        assert sum(step.answer for step in steps) == 19 + 1  # the first token comes of the prompt
    assert max(step.prompt for step in step_tokens(traces["whole"])) == 40
    assert max(step.prompt + step.answer for step in step_tokens(traces["chunked"])) == 8


def test_gaps_are_the_steps_between_two_tokens(traces):
    gaps = dict(gaps_of(traces["whole"], "reader"))
    assert len(gaps) == 19 and max(gaps.values()) == pytest.approx(0.5 + 0.1 * 41)
    assert max(gap for _, gap in gaps_of(traces["chunked"], "reader")) == pytest.approx(0.5 + 0.1 * 8)
    assert longest_wait(traces) == "reader"
    with pytest.raises(ValueError, match="request_id must be one of the trace's, reader, long, …, got 'x'"):
        gaps_of(traces["whole"], "x")


def test_the_picture_shows_both(traces):
    picture = plot_step_tokens(traces)
    assert any("longest gap of all, that of request reader" in text.get_text() for text in picture.texts)
    *panels, gaps = picture.axes
    prompts = [panel.collections[1] for panel in panels]
    assert [one.get_label() for one in prompts] == ["prompt"] * 2
    assert max(path.vertices[:, 1].max() for path in prompts[0].get_paths()) == 41
    assert max(path.vertices[:, 1].max() for path in prompts[1].get_paths()) == 8
    tallest = {line.get_label(): max(line.get_ydata()) for line in gaps.lines if line.get_label() in traces}
    assert tallest == pytest.approx({"whole": 4.6, "chunked": 1.3})
    assert picture.alt.endswith("request reader: whole 4.6 s; chunked 1.3 s.")
    picture.png(1.0)


def test_a_stretch_alone_is_drawn(traces):
    picture = plot_step_tokens(traces, "long", until_s=1.0)  # before it comes
    assert "whole –; chunked –" in picture.alt
    picture.png(1.0)


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="traces must be 1 to 4, got 0"):
        plot_step_tokens({})
    single = simulate([Request("a", [1], max_tokens=1)], Scheduler(BlockPool(9), ContinuousBatching()))
    with pytest.raises(ValueError, match="traces must have an answer of two tokens, got none"):
        longest_wait({"one": single})
