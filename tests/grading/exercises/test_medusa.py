"""What the exercises about trees are drawn from, and that their mistakes are told by name."""

import random

import pytest
import torch

from llmcourse.grading.answer import Answer
from llmcourse.grading.exercises import catalogue
from llmcourse.grading.exercises.medusa import walks
from llmcourse.grading.exercises.medusa.medusa_candidates import medusa_candidates
from llmcourse.grading.exercises.medusa.walk_tree import walk_tree
from llmcourse.grading.exercises.speculative.drawn import OWN_WORK
from llmcourse.grading.in_notebook.call import InProcess
from llmcourse.grading.names_used import names_used
from llmcourse.grading.question import examine
from llmcourse.grading.rules import Evidence
from tests.grading.exercises.answers import cases, drawn_once, unchecked
from tests.grading.exercises.mistakes import assert_told

SEEDS = range(20)


@pytest.mark.parametrize(
    ("name", "mistake", "told"),
    [
        ("04.medusa_candidates", "lets a node see all before it", "not on its path"),
        ("04.medusa_candidates", "lets a node see all that are less deep", "not on its path"),
        ("04.medusa_candidates", "counts positions by node", "siblings stand for the same place"),
        ("04.medusa_candidates", "takes a node's first rank", "**last** rank"),
        ("04.medusa_candidates", "lets a node see its descendants", "the wrong way round"),
        ("04.walk_tree", "takes the longest path", "not one that stands"),
        ("04.walk_tree", "judges a node by its own row", "after its **parent**"),
        ("04.walk_tree", "looks at tokens, not at parents", "behind another node"),
        ("04.walk_tree", "reads the bonus token a row early", "at the wrong row"),
        ("04.walk_tree", "keeps slots in a row", "whatever its depth"),
        ("04.walk_tree", "keeps a slot for the bonus token", "has not been read"),
        ("04.walk_tree", "takes children for neighbours", "need not be neighbours"),
        ("04.walk_tree", "stops at the next level", "deeper nodes may come before"),
    ],
)
def test_a_mistake_is_told_by_name(name, mistake, told):
    assert_told(catalogue.find(name), mistake, told)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_path_read_alone_sees_what_the_tree_shows_its_last_node(seed):
    """The columns that a node sees are the text and its path, in order: as a causal mask has them."""
    for case in cases("04.medusa_candidates", seed):
        if case.raises:
            continue
        _, parents, positions, mask = medusa_candidates(**case.arguments)
        length = case.arguments["length"]
        for node in range(len(parents)):
            path = [node]
            while parents[path[0]] >= 0:
                path.insert(0, int(parents[path[0]]))
            seen = mask[node].nonzero()[:, 0].tolist()
            assert seen == [*range(length), *(length + other for other in path)]
            assert positions[path].tolist() == list(range(length, length + len(path)))


@pytest.mark.parametrize(
    ("label", "ranks"), [("a node without its parent", 2), ("a deep node without its parent", 3)]
)
def test_nodes_of_so_many_ranks_miss_their_parent(label, ranks):
    for seed in SEEDS:
        (case,) = [case for case in cases("04.medusa_candidates", seed) if case.label == label]
        nodes = case.arguments["choices"]
        assert {len(node) for node in nodes if len(node) > 1 and node[:-1] not in nodes} == {ranks}


def test_an_orphan_may_be_deep_and_ranks_may_be_high():
    orphans, sizes = set(), set()
    for seed in SEEDS:
        drawn = {case.label: case.arguments for case in cases("04.medusa_candidates", seed)}
        nodes = drawn["an orphan deeper still"]["choices"]
        orphans |= {len(node) for node in nodes if len(node) > 1 and node[:-1] not in nodes}
        many = drawn["many heads and high ranks"]
        sizes.add(max(map(len, many["choices"])))
        assert max(map(max, many["choices"])) >= 10 and many["logits"].shape[1] >= 13
    assert orphans == sizes == {6, 7}


def test_siblings_hold_different_tokens_and_branches_share_some():
    shared = 0
    for seed in SEEDS:
        for case in cases("04.walk_tree", seed):
            tokens, parents = (case.arguments[name].tolist() for name in ("tokens", "parents"))
            pairs = list(zip(tokens, parents, strict=True))
            assert len(set(pairs)) == len(pairs) and all(parent < n for n, parent in enumerate(parents))
            shared += len(set(tokens)) < len(tokens)
    assert shared >= len(SEEDS)


@pytest.mark.parametrize(
    ("label", "depths"),
    [
        ("a branch stands in part", {2}),
        ("node 0 stands", {2, 3}),
        ("nothing stands", {0}),
        ("a draft of token 0", {2, 3}),
        ("a whole branch stands", {6, 7, 8}),
        ("a single node", {1}),
        ("right behind one that fell", {1}),
        ("a cousin holds the token", {2}),
        ("not level by level", {2}),
        ("no nodes", {0}),
    ],
)
def test_so_many_nodes_stand_as_a_case_wants(label, depths):
    found = set()
    for seed in SEEDS:
        (case,) = [case for case in cases("04.walk_tree", seed) if case.label == label]
        path, bonus, slots = walk_tree(**case.arguments)
        found.add(len(path))
        assert len(slots) == case.arguments["length"] + len(path)
        last = path[-1] if path else walks.ROOT
        below = case.arguments["tokens"][case.arguments["parents"] == last].tolist()
        assert bonus not in below
        if path:
            assert bool(below) == (label not in ("a whole branch stands", "a single node"))
    assert found == depths


def test_trees_have_three_to_eight_levels():
    found = set()
    for seed in SEEDS:
        for case in cases("04.walk_tree", seed):
            depths = [0]
            for parent in case.arguments["parents"].tolist():
                depths.append(depths[parent + 1] + 1)
            found.add(max(depths))
    assert found == {0, 1, 3, 4, 5, 6, 7, 8}


@pytest.mark.parametrize("wrong", walks.OF_A_LEVEL, ids=["of any branch", "of the same"])
def test_a_node_of_the_next_level_fails_for_every_seed(wrong):
    with unchecked():
        for seed in range(30):
            verdict = examine(drawn_once(catalogue.find("04.walk_tree"), seed), seed, InProcess(wrong))
            assert verdict.status == "fail", seed


def test_token_0_stands_in_a_case_of_its_own():
    for seed in SEEDS:
        for case in cases("04.walk_tree", seed):
            path, *_ = walk_tree(**case.arguments)
            assert (0 in case.arguments["tokens"][path].tolist()) == (case.label == "a draft of token 0")


def test_a_text_of_one_token_is_among_the_cases():
    lengths = {case.arguments["length"] for seed in SEEDS for case in cases("04.medusa_candidates", seed)}
    assert lengths == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(("label", "at_0"), [("a branch stands in part", False), ("node 0 stands", True)])
def test_a_path_begins_at_node_0_in_a_case_of_its_own(label, at_0):
    for seed in SEEDS:
        (case,) = [case for case in cases("04.walk_tree", seed) if case.label == label]
        path, *_ = walk_tree(**case.arguments)
        assert (path[0] == 0) == at_0


def test_nodes_come_level_by_level_but_in_one_case():
    for seed in SEEDS:
        for case in cases("04.walk_tree", seed):
            parents = case.arguments["parents"].tolist()
            assert (parents == sorted(parents)) == (case.label != "not level by level")


def test_rows_of_the_target_have_one_peak():
    for seed in SEEDS:
        for case in cases("04.walk_tree", seed):
            best = case.arguments["logits"].topk(2).values
            assert (best[:, 0] - best[:, 1]).min() > 0.03  # far more than rounding


def test_the_tree_that_the_first_exercise_makes_is_one_that_the_second_walks():
    rng = random.Random(3)
    logits = torch.randn(3, 11, generator=torch.Generator().manual_seed(3))
    choices = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 1, 0)]
    tokens, parents, *_ = medusa_candidates(logits, rng.sample(choices, 6), 4)
    said = torch.zeros(7, 11)
    said[0, tokens[0]] = said[1, tokens[3]] = said[4, tokens[5]] = said[6, 2] = 1.0
    assert walk_tree(said, tokens, parents, 4) == ([0, 3, 5], 2, [0, 1, 2, 3, 4, 7, 9])


@pytest.mark.parametrize(
    ("imported", "used", "told"),
    [
        ("from llmcourse.speculative.medusa import MedusaTree", "MedusaTree", "medusa"),
        ("from llmcourse.figures.candidate_tree import MedusaTree", "MedusaTree", "figures"),
        ("from llmcourse.figures.widgets import exit_explorer", "exit_explorer.EntropyRule", "figures"),
        ("from llmcourse.grading.exercises import catalogue", "catalogue.find", "grading"),
        ("import llmcourse", "llmcourse.grading.exercises.medusa.walk_tree.walk_tree", "grading"),
        ("from llmcourse.grading import check", "torch.tensor", ""),
        ("from llmcourse.grading.selfcheck import check", "len", ""),
    ],
)
def test_an_answer_of_the_course_itself_is_not_own_work_on_whatever_road(imported, used, told):
    source = f"{imported}\n\ndef walk_tree(logits, tokens, parents, length):\n    return {used}(logits)\n"
    broken = OWN_WORK(Evidence(Answer(), used=names_used(source, "walk_tree")))
    assert broken == (told and f"uses {told}, which this exercise is about")


@pytest.mark.parametrize(
    ("above", "used"),
    [
        ("import llmcourse as course", "course.early_exit.rules"),
        ("from llmcourse import *", "early_exit.rules"),
        ("import sys", "sys.modules['llmcourse'].early_exit"),
        ("import importlib", "importlib.import_module('llmcourse.early_exit')"),
        ("import llmcourse", "getattr(llmcourse, 'early_exit')"),
        ("from llmcourse import pretrained\nbase = pretrained", "base.early_exit"),
    ],
)
def test_a_part_of_the_course_is_found_behind_it(above, used):
    source = f"{above}\n\ndef walk_tree(logits, tokens, parents, length):\n    return {used}\n"
    broken = OWN_WORK(Evidence(Answer(), used=names_used(source, "walk_tree")))
    assert broken == "uses early_exit, which this exercise is about"


@pytest.mark.parametrize(
    "body",
    [
        "state.early_exit = True\n    return state.early_exit",
        "return [node.medusa for node in tokens]",
        "figures = tokens.figures()\n    return figures",
        "return getattr(tokens, 'grading')",
    ],
)
def test_words_of_ones_own_may_be_called_like_a_part_of_the_course(body):
    setup = "from llmcourse.grading.selfcheck import check\nfrom llmcourse import pretrained\n"
    source = f"{setup}\ndef walk_tree(logits, tokens, parents, length):\n    {body}\n"
    assert OWN_WORK(Evidence(Answer(), used=names_used(source, "walk_tree"))) == ""
