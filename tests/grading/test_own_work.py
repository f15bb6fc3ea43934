"""The course's own is not own work, on whatever road it comes: self-check and grader say the same of each."""

import json
import linecache
from dataclasses import replace
from pathlib import Path

import pytest

from llmcourse.grading import assembly, judge
from llmcourse.grading.answer import Answer
from llmcourse.grading.exercises.speculative.drawn import OWN_WORK
from llmcourse.grading.in_notebook.source import used_by
from llmcourse.grading.intake.submissions import Submission
from llmcourse.grading.names_used import LIBRARIES, joined, names_used
from llmcourse.grading.process.allowance import Allowance
from llmcourse.grading.process.nursery import Nursery
from llmcourse.grading.rules import Evidence, Forbid
from llmcourse.grading.sandbox.policy import Tier
from llmcourse.grading.selfcheck import SelfCheck

LAB = "04_speculative_medusa_early_exit"
ROOT = Path(__file__).resolve().parents[2]
RIGHT = """
def patience_exit(logits, patience):
    favourites = logits.argmax(-1)
    count = torch.zeros_like(favourites[0])
    layers = torch.full_like(count, len(favourites))
    for n in range(1, len(favourites)):
        count = torch.where(favourites[n] == favourites[n - 1], count + 1, 0)
        leaves = (count >= patience) & (layers == len(favourites))
        layers = torch.where(leaves, n + 1, layers)
    {uses}
    return layers, favourites.gather(0, layers[None] - 1)[0]
"""


def cells(above, uses):
    return [f"import torch\n{above}", RIGHT.format(uses=uses)]


def written(*texts, name="patience_exit"):
    """The function of cells that run one after another in one notebook, each with a source of its own."""
    names = {"__name__": "__main__"}
    for number, text in enumerate(texts):
        place = f"<notebook {hash(texts)} {number}>"
        linecache.cache[place] = (len(text), None, text.splitlines(keepends=True), place)
        exec(compile(text, place, "exec"), names)
    return names[name]


@pytest.fixture(scope="module")
def nursery():
    with Nursery(Tier.NONE, Allowance()) as nursery:
        yield nursery


def by_both(nursery, rule, above, uses):
    """What a rule says in a notebook, and what it says where the cells are graded."""
    texts = cells(above, uses)
    with nursery.worker(texts) as worker:
        worker.load(60.0)
        reached = worker.origins("patience_exit")
    graded = names_used(joined(texts)[0], "patience_exit", reached)
    return [rule(Evidence(Answer(), used=used)) for used in (used_by(written(*texts)), graded)]


# PART is of the course, and THING a class in it.
MODULE, IMPORTED = "import llmcourse.PART", "from llmcourse.PART import THING"
IN_TEXT = [
    # imports
    (IMPORTED, "THING"),
    ("from llmcourse.PART import THING as T", "T"),
    ("import llmcourse.PART as p", "p.THING"),
    (MODULE, "llmcourse.PART.THING"),
    (f"{MODULE}\nimport llmcourse as course", "course.PART.THING"),
    ("from llmcourse import PART", "PART.THING"),
    ("from llmcourse import PART as p", "p.THING"),
    ("", "from llmcourse.PART import THING as T; T"),
    ("try:\n    from llmcourse.PART import THING\nexcept ImportError: pass", "THING"),
    ("if True:\n    import llmcourse.PART as p", "p.THING"),
    # star imports
    ("from llmcourse.PART import *", "THING"),
    ("if True:\n    from llmcourse.PART import *", "THING"),
    (f"{MODULE}\nfrom llmcourse import *", "PART"),
    ("from llmcourse.PART import *\ndef helper(): return THING", "helper()"),
    # by text
    ("import importlib", "importlib.import_module('llmcourse.PART').THING"),
    ("import importlib", "importlib.import_module(name='llmcourse.PART').THING"),
    ("import importlib", "importlib.import_module('.PART', package='llmcourse').THING"),
    ("import importlib", "importlib.import_module('llm' + 'course' + '.PART').THING"),
    ("from importlib import import_module as load", "load('llmcourse.PART').THING"),
    ("from importlib import import_module as load\np = load('llmcourse.PART')", "p.THING"),
    ("", "__import__('llmcourse.PART').PART.THING"),
    ("", "__import__('llmcourse.PART', fromlist=['']).THING"),
    ("load = __import__", "load('llmcourse.PART', fromlist=['']).THING"),
    (MODULE, "getattr(llmcourse, 'PART').THING"),
    (MODULE, "getattr(llmcourse.PART, 'THING')"),
    (f"{MODULE}\nimport llmcourse as course", "vars(course)['PART'].THING"),
    (f"{MODULE}\nimport sys", "sys.modules['llmcourse.PART'].THING"),
    (f"{MODULE}\nimport sys\nT = sys.modules['llmcourse.PART'].THING", "T"),
    ("", "exec('from llmcourse.PART import THING')"),
    # behind something else
    (f"{IMPORTED}\nthing = [THING]", "thing"),
    (f"{IMPORTED}\nimport functools\nthing = functools.partial(THING, 2)", "thing"),
    (f"{IMPORTED}\nclass Mine(THING): pass", "Mine"),
    (f"{IMPORTED}\nclass Mine:\n    def thing(self): return THING", "Mine().thing()"),
    (f"{IMPORTED}\nimport functools\n@functools.cache\ndef thing(): return THING", "thing()"),
    (f"{IMPORTED}\n@torch.no_grad()\ndef thing(): return THING", "thing()"),
    (f"{IMPORTED}\ndef thing(kind=THING): return kind", "thing()"),
    (f"{IMPORTED}\ndef thing(kind: THING): return kind", "thing(1)"),
    (f"{IMPORTED}\ndef make():\n    T = THING\n    return lambda: T\nthing = make()", "thing()"),
]
IN_OBJECTS = [  # alone: a worker has to look at them
    ("exec('from llmcourse.PART import THING')", "THING"),
    ("def load():\n    global T\n    from llmcourse.PART import THING as T\nload()", "T"),
    ("from llmcourse.roofline.memory import weight_bytes", "weight_bytes"),  # has it from there
    ("from llmcourse.roofline.memory import *", "weight_bytes"),
    ("import llmcourse.roofline.memory as m", "m.weight_bytes"),
    ("import llmcourse.roofline.memory", "llmcourse.roofline.memory.weight_bytes"),
    ("name = 'llmcourse.' + chr(99) + 'osts'\np = __import__(name, fromlist=[''])", "p.THING"),
]
COSTS = Forbid(names=(*LIBRARIES, "costs"))


@pytest.mark.parametrize(("above", "uses"), IN_TEXT)
def test_what_this_lab_builds_is_refused_by_both(nursery, above, uses):
    """Where it is graded it cannot be imported, so that the text alone tells."""
    texts = [text.replace("PART", "early_exit").replace("THING", "PatienceRule") for text in (above, uses)]
    assert by_both(nursery, OWN_WORK, *texts) == 2 * ["uses early_exit, which this exercise is about"]


@pytest.mark.parametrize(("above", "uses"), IN_TEXT + IN_OBJECTS)
def test_what_another_lab_builds_is_refused_by_both(nursery, above, uses):
    """It can be imported there."""
    texts = [text.replace("PART", "costs").replace("THING", "ModelShapes") for text in (above, uses)]
    assert by_both(nursery, COSTS, *texts) == 2 * ["uses costs, which this exercise is about"]


@pytest.mark.parametrize(
    ("above", "uses"),
    [
        ("import scipy.special", "scipy.special.expit"),
        ("import scipy.special as s", "s.expit"),
        ("from scipy.special import *", "expit"),
        ("from scipy.special import *", "softmax"),
        ("from scipy.special import softmax as s", "s"),
        ("from importlib import import_module as load", "load('scipy.special').expit"),
    ],
)
def test_a_library_is_refused_by_both(nursery, above, uses):
    assert by_both(nursery, OWN_WORK, above, uses) == 2 * ["uses scipy, which this exercise is about"]


@pytest.mark.parametrize(
    ("above", "uses"), [("import numpy as np", "np.ones"), ("from numpy import exp", "exp(1)")]
)
def test_numpy_is_refused_by_both_where_it_is_not_for_use(nursery, above, uses):
    rule = Forbid(names=("numpy",))
    assert by_both(nursery, rule, above, uses) == 2 * ["uses numpy, which this exercise is about"]


HERE = "from llmcourse.early_exit"


@pytest.mark.parametrize(
    ("above", "uses"),
    [
        (f"{HERE} import PatienceRule", "layers"),  # and it is not used
        (f"{HERE} import *", "layers"),
        (f"{HERE} import *\nfrom math import *", "pi"),
        (f"{HERE} import *\ndef entropy(x): return x", "layers = entropy(layers)"),
        ("from llmcourse.grading.selfcheck import check", "torch"),
        ("from llmcourse.model import Decoder", "Decoder"),  # no part that is built here
        ("from llmcourse.model import *", "Decoder"),
        ("def helper(x): return x", "layers = helper(layers)"),
        ("class State:\n    early_exit = True", "State.early_exit"),
        ("speculative = {'early_exit': 1}", "speculative['early_exit']"),
        ("", "'''as in llmcourse.early_exit'''"),
        ("", "layers = layers  # llmcourse.early_exit"),
        ("def mine():\n    '''not llmcourse.early_exit'''", "mine()"),
        ("figures = [1, 2]\nmedusa = torch.ones(1)", "figures, medusa"),
        ("@torch.no_grad()\ndef helper(x): return x", "layers = helper(layers)"),
        ("import math, numpy, functools", "math.pi, numpy.pi, functools.reduce"),
    ],
)
def test_what_is_not_used_or_not_the_answer_is_let_through_by_both(nursery, above, uses):
    assert by_both(nursery, OWN_WORK, above, uses) == ["", ""]
    assert SelfCheck(show=lambda report: None)("04.patience_exit", written(*cells(above, uses))).passed


@pytest.mark.parametrize(
    ("above", "uses", "status"),
    [
        (f"{HERE} import *", "PatienceRule", "fail"),
        (f"{HERE} import *", "if patience < 0: PatienceRule", "fail"),  # which it never is
        (f"{HERE} import *", "math = 1", "pass"),
    ],
)
def test_a_grade_and_a_self_check_are_the_same(nursery, above, uses, status):
    """From the file that is handed in."""
    lab = assembly.judged_lab(LAB)
    book = json.loads((ROOT / "solutions" / f"{LAB}.ipynb").read_text(encoding="utf-8"))
    for cell in book["cells"]:
        if "".join(cell["source"]).startswith("# Exercise 04.patience_exit\n"):
            cell["source"] = f"# Exercise 04.patience_exit\n{above}\n{RIGHT.format(uses=uses)}"
    one = tuple(exercise for exercise in lab.exercises if exercise.name == "04.patience_exit")
    submission = Submission.of("alice", json.dumps(book).encode())
    (question,) = judge.grade(submission, replace(lab, exercises=one), nursery, b"").questions
    verdict = SelfCheck(show=lambda report: None)("04.patience_exit", written(*cells(above, uses)))
    assert question.status == verdict.status == status
    assert verdict.reason == (status == "fail") * "own work: uses early_exit, which this exercise is about"


def test_functions_that_call_each_other_are_read_once():
    answer = written(
        "def one(): return two()", "def two(): return one()", "def f(): return one(), two(), three", name="f"
    )
    assert used_by(answer) - {"__main__"} == {"three"}


def test_what_has_no_source_is_known_by_its_objects():
    names = {"__name__": "__main__"}
    exec("import math\ndef f(): return math.pi", names)
    assert used_by(names["f"]) == {"__main__", "math"}
    assert used_by(object()) == used_by(len) == used_by(None) == frozenset()


def test_an_answer_that_is_the_course_s_own_function_is_refused():
    from llmcourse.speculative import residual

    verdict = SelfCheck(show=lambda report: None)("04.residual", residual)
    assert verdict.reason == "own work: uses speculative, which this exercise is about"
