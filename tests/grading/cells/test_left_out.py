"""Which cell pays when the time of all is over: the one that used it."""

from llmcourse.grading.answer import Failure
from llmcourse.grading.cells.left_out import MOST, LeftOut
from llmcourse.grading.process.nursery import LoadReport

LATE = Failure("time limit", "took more than 10 s")
ENDED = Failure("process ended", "the process was ended by SIGKILL")
CELLS = ["a", "b", "c", "own"]


def late(*seconds, stopped_in=None, failure=LATE):
    stopped_in = len(seconds) - 1 if stopped_in is None else stopped_in
    return LoadReport(failure=failure, stopped_in=stopped_in, cell_seconds=seconds)


def test_nothing_is_left_out_of_what_runs():
    left_out = LeftOut()
    assert not left_out.blame(LoadReport(cell_seconds=(9.0, 0.1, 0.1, 0.1)), CELLS, "own")
    assert left_out.kept(CELLS, "own") == CELLS and left_out.notes(CELLS, CELLS) == []


def test_the_cell_that_took_longest_is_left_out_not_the_one_at_the_end():
    left_out = LeftOut()
    assert left_out.blame(late(0.1, 8.0, 0.2, 1.7), CELLS, "own")
    assert left_out.kept(CELLS, "own") == ["a", "c", "own"]
    assert left_out.notes(CELLS, ["a", "c", "own"]) == ["cell left out: time limit: took more than 10 s"]


def test_the_answer_stays_while_another_took_its_part():
    left_out = LeftOut()
    left_out.blame(late(0.1, 0.2, 3.0, 6.7), CELLS, "own")
    assert left_out.kept(CELLS, "own") == ["a", "b", "own"]


def test_the_answer_pays_where_the_others_took_next_to_nothing():
    left_out = LeftOut()
    left_out.blame(late(0.1, 0.2, 0.3, 9.4), CELLS, "own")
    assert left_out.kept(CELLS, "own") == ["a", "b", "c"]
    assert left_out.kept(CELLS, "a") == ["a", "b", "c"], "also for later questions"


def test_who_was_suspected_for_the_answer_s_sake_is_back_when_it_was_the_answer():
    left_out = LeftOut()
    left_out.blame(late(0.1, 0.2, 3.0, 6.7), CELLS, "own")
    left_out.blame(late(0.1, 0.2, 9.7), ["a", "b", "own"], "own")
    assert left_out.kept(CELLS, "own") == left_out.kept(CELLS, "a") == ["a", "b", "c"]


def test_who_took_most_of_the_time_is_not_back():
    left_out = LeftOut()
    left_out.blame(late(0.1, 0.2, 9.0, 0.7), CELLS, "own")
    left_out.blame(late(0.1, 0.2, 9.7), ["a", "b", "own"], "own")
    assert left_out.kept(CELLS, "own") == ["a", "b"]


def test_an_answer_that_was_left_out_for_another_runs_when_it_is_asked_for_itself():
    left_out = LeftOut()
    left_out.blame(late(0.1, 6.0, 3.0, 0.9), CELLS, "own")
    assert left_out.kept(CELLS, "own") == ["a", "c", "own"]
    assert left_out.kept(CELLS, "b") == CELLS
    left_out.blame(late(0.1, 9.9), ["a", "b"], "b")
    assert left_out.kept(CELLS, "b") == ["a", "c", "own"]


def test_a_cell_that_ends_the_process_is_known_at_once():
    left_out = LeftOut()
    left_out.blame(late(5.0, 0.1, failure=ENDED), CELLS, "own")
    assert left_out.kept(CELLS, "own") == left_out.kept(CELLS, "b") == ["a", "c", "own"]


def test_some_are_left_out_and_no_more():
    left_out = LeftOut()
    cells = [str(number) for number in range(2 * MOST)]
    for _ in range(MOST):
        kept = left_out.kept(cells, "own")
        assert left_out.blame(late(*[1.0] * len(kept)), kept, "own")
    assert not left_out.blame(late(*[1.0] * len(kept)), kept, "own")
    assert len(left_out.kept(cells, "own")) == MOST
