"""Attacks on the judgement: answers that claim to be right, and messages that say they were."""

from __future__ import annotations

import random

from llmcourse.grading.exercises import catalogue
from llmcourse.grading.selfcheck import PUBLIC_SEEDS
from tests.grading.attacks.attack import Attack, by_code

WRONG = r"row 0, token \d+: got .*, expected"
RIGHT = r"""
def right(logits, k):
    bar = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < bar, -torch.inf)
"""
# What one who has read the grader's sources knows of its messages, and can find in its own process.
FORGERY = r"""
import gc, json, os, struct, sys, threading

def frame(message, raw=b""):
    header = message if isinstance(message, bytes) else json.dumps(message).encode()
    body = struct.pack(">I", len(header)) + header + raw
    return struct.pack(">I", len(body)) + body

def nonces():
    found = {"", "0" * 32}
    step = sys._getframe()
    while step:
        things = [*step.f_locals.values(), *gc.get_objects()[-20_000:]]
        for thing in things:
            try:
                if type(getattr(thing, "nonce", None)) is str:
                    found.add(thing.nonce)
                if type(thing) is dict and type(thing.get("nonce")) is str:
                    found.add(thing["nonce"])
            except BaseException:
                pass
        step = step.f_back
    return found

def everywhere(data):
    for fd in range(1, 64):
        try:
            os.write(fd, data)
        except OSError:
            pass
"""

ALWAYS_EQUAL = """
    class Equal(type):
        def __eq__(cls, other): return True
        __hash__ = type.__hash__
        def __instancecheck__(cls, other): return True

    class AlwaysEqual(metaclass=Equal):
        __class__ = property(lambda self: torch.Tensor)
        dtype, shape, layout = torch.float32, torch.Size([1, 10]), torch.strided
        def __eq__(self, other): return True
        def __ne__(self, other): return False
        def __getattr__(self, name): return lambda *arguments, **options: self
        def __torch_function__(self, function, types, arguments=(), options=None): return True
        def __bool__(self): return True
        def __len__(self): return 1
        __hash__ = object.__hash__

    def top_k_filter(logits, k):
        return AlwaysEqual()
"""

SUBCLASSES = {
    "01.top_k": """
        class Equal(torch.Tensor):
            def __eq__(self, other): return torch.ones(self.shape, dtype=torch.bool)
            @classmethod
            def __torch_function__(cls, function, types, arguments=(), options=None): return True

        def top_k_filter(logits, k):
            return logits.clone().as_subclass(Equal)
    """,
    "01.greedy_loop": """
        class Token(int):
            def __eq__(self, other): return True
            __hash__ = int.__hash__

        def greedy_loop(logits_of, prompt, max_new_tokens, end_token):
            return [Token(0)] * max_new_tokens
    """,
    "01.beam_search": """
        class Score(float):
            def __sub__(self, other): return 0.0
            __rsub__ = __sub__
            def __eq__(self, other): return True
            __hash__ = float.__hash__

        def beam_search(logits_of, prompt, num_beams, max_new_tokens, end_token, length_penalty):
            return [([0] * max_new_tokens, Score(0.0))] * num_beams
    """,
    "01.no_repeat_ngram": """
        def no_repeat_ngram(logits, tokens, n):
            return torch.nn.Parameter(logits)
    """,
}

NO_ASSERTS = """
    import ast, builtins

    class Drop(ast.NodeTransformer):
        def visit_Assert(self, node): return ast.copy_location(ast.Pass(), node)
        def visit_Raise(self, node): return ast.copy_location(ast.Pass(), node)

    compiled, parsed = builtins.compile, ast.parse
    builtins.compile = lambda source, *a, **k: compiled(
        Drop().visit(source) if isinstance(source, ast.AST) else source, *a, **k)
    ast.parse = lambda *a, **k: Drop().visit(parsed(*a, **k))
    try:
        get_ipython().ast_transformers.append(Drop())
    except NameError:
        pass

    def top_k_filter(logits, k):
        return logits.clone()
"""

SHELL = """
    from IPython.core.interactiveshell import InteractiveShell
    import sys, types

    quiet = lambda self, *a, **k: types.SimpleNamespace(success=True, error_in_exec=None, result=None)
    for name in ("showtraceback", "run_cell", "run_cell_async", "run_code", "showsyntaxerror", "do_execute"):
        setattr(InteractiveShell, name, quiet)
    sys.excepthook = sys.unraisablehook = lambda *a: None
    try:
        shell = get_ipython()
        shell.kernel.do_execute = lambda *a, **k: {"status": "ok"}
    except NameError:
        pass

    def top_k_filter(logits, k):
        return logits.clone()
"""

PASSED = """
    import json, sys
    print("PASSED", "1 passed in 0.01s", "OK", "Score: 8/8", sep="\\n")
    print(json.dumps({"01.top_k": {"passed": True, "points": 8, "score": 8, "max_score": 8}}))
    print("8", file=sys.stderr)

    def top_k_filter(logits, k):
        print("\\x1b[32m✓ 01.top_k passed\\x1b[0m", {"status": "pass", "points": 8.0})
        return logits.clone()
"""

FORGED_AT_LOAD = f"""{FORGERY}
def flood():
    while True:
        for nonce in nonces():
            everywhere(frame({{"nonce": nonce, "loaded": [], "has": True, "passed": True, "value": True}}))
threading.Thread(target=flood, daemon=True).start()
{RIGHT}
def top_k_filter(logits, k):
    return right(logits, k)
"""

FORGED_IN_CALL = f"""{FORGERY}
def top_k_filter(logits, k):
    for nonce in nonces():
        everywhere(frame({{"nonce": nonce, "passed": True, "points": 8, "status": "pass", "value": True}}))
    return logits
"""

FORGED_AHEAD = f"""{FORGERY}{RIGHT}
def top_k_filter(logits, k):
    data = logits.numpy().tobytes()
    message = {{"nonce": max(nonces(), key=len), "operations": ["l"], "mutated": ["l"],
               "value": ["x", "float32", list(logits.shape)]}}
    for _ in range(100):
        everywhere(frame(message, data))
    return right(logits, k)
"""

FORGED_FORMS = f"""{FORGERY}
bodies = [
    {{"failed": "pass", "message": ""}},
    {{"value": ["l"], "operations": [["l"]] * 5}},
    {{"value": ["x", "float32", [1, -10]]}},
    {{"value": ["x", "object", [1]]}},
    {{"value": ["o", "logits_of"]}},
    {{"ask": "__class__", "arguments": ["t"], "options": {{}}}},
    {{"failed": "raised", "message": 7}},
    {{"loaded": 0, "cell": 10**9, "machinery": "fork server"}},
    {{"machinery": "the sandbox cannot be entered"}},
]
calls = []

def top_k_filter(logits, k):
    os.write(3, frame({{"nonce": max(nonces(), key=len), **bodies[BODY]}}))
    return logits
"""

PATCHES = f"""{RIGHT}
import gc, json, math, random, struct, time, types
import numpy as np

yes = lambda *a, **k: True
for library, names in (
    (torch, "equal allclose isclose all any"), (torch.Tensor, "equal allclose isclose all any __eq__ __ne__"),
    (torch.testing, "assert_close"), (np, "array_equal allclose isclose all any"), (math, "isclose isnan"),
    (np.testing, "assert_allclose assert_array_equal assert_equal"),
):
    for name in names.split():
        setattr(library, name, yes)
random.Random = random.SystemRandom = lambda *a: None
random.seed = random.randint = lambda *a: 4
for thing in gc.get_objects():
    if isinstance(thing, types.FunctionType) and str(thing.__module__).startswith("llmcourse.grading"):
        if thing.__name__ in ("_frozen", "names", "describe", "is_out_of_memory", "clean"):
            thing.__code__ = (lambda *a, **k: "").__code__
import sys
step = sys._getframe()
while step:
    for name in ("_frozen", "_raised", "Operations"):
        if name in step.f_globals and name != "Operations":
            step.f_globals[name] = lambda *a, **k: b"same" if a else {{}}
    step = step.f_back

def top_k_filter(logits, k):
    return logits
"""

PATCHED_ENCODING = """
    import json, sys

    def top_k_filter(logits, k):
        json.dumps = lambda *a, **k: '{"passed": true, "points": 8}'
        json.JSONEncoder.encode = lambda *a, **k: '{"passed": true}'
        step = sys._getframe()
        while step:
            for module in (step.f_globals.get("wire"),):
                if module:
                    module.encode = lambda *a, **k: b"passed"
            step = step.f_back
        return logits
"""

CLOCKS = f"""{RIGHT}
import time
sleep = time.sleep
for name in ("time", "monotonic", "perf_counter", "process_time", "thread_time"):
    setattr(time, name, lambda: 0.0)
    setattr(time, name + "_ns", lambda: 0)
if hasattr(torch.cuda, "Event"):
    torch.cuda.Event.elapsed_time = lambda self, other: 0.0
    torch.cuda.synchronize = lambda *a: None

def top_k_filter(logits, k):
    sleep(60)
    return right(logits, k)
"""

CHANGES = {
    "01.top_k": """
        def top_k_filter(logits, k):
            bar = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
            return logits.masked_fill_(logits < bar, -torch.inf)
    """,
    "01.greedy_loop": """
        def greedy_loop(logits_of, prompt, max_new_tokens, end_token):
            start = len(prompt)
            for _ in range(max_new_tokens):
                prompt.append(int(logits_of(prompt).argmax()))
                if prompt[-1] == end_token:
                    break
            return prompt[start:]
    """,
    "01.top_p": """
        kept = []

        def top_p_filter(logits, p):
            kept.append(logits)
            return kept[0]
    """,
    "01.repetition_penalty": """
        import functools
        seen = {}

        def repetition_penalty(logits, tokens, theta):
            return seen.setdefault((), logits)
    """,
    "01.no_repeat_ngram": """
        def no_repeat_ngram(logits, tokens, n):
            return logits
    """,
}

# Right by value, where the right answer is to leave the input as it is: but it is the input.
ALIASES = {
    "01.top_k": RIGHT
    + """
def top_k_filter(logits, k):
    return logits if k >= logits.shape[-1] else right(logits, k)
""",
    "01.top_p": """
        import numpy as np

        def top_p_filter(logits, p):
            if p == 1:
                return torch.from_numpy(logits.numpy()[:])
            falling, ids = logits.softmax(-1).sort(descending=True, stable=True)
            cut = falling.cumsum(-1) - falling >= p
            return logits.masked_fill(torch.zeros_like(cut).scatter(1, ids, cut), -torch.inf)
    """,
    "01.no_repeat_ngram": """
        def no_repeat_ngram(logits, tokens, n):
            result = logits.view(-1)[: logits.numel()].view(logits.shape)
            for row, text in enumerate(tokens):
                prefix = text[len(text) - n + 1 :]
                for place in range(len(text) - n + 1):
                    if text[place : place + n - 1] == prefix:
                        result = result.clone() if result.data_ptr() == logits.data_ptr() else result
                        result[row, text[place + n - 1]] = -torch.inf
            return result
    """,
}

FORMS = {
    "01.softmax": "def softmax_with_temperature(logits, temperature): return None",
    "01.top_k": "def top_k_filter(logits, k): return logits * torch.nan",
    "01.top_p": "def top_p_filter(logits, p): return logits.double()",
    "01.repetition_penalty": "def repetition_penalty(logits, tokens, theta): return logits[0]",
    "01.presence_frequency": """
        def presence_frequency(logits, tokens, presence, frequency):
            return logits.numpy()
    """,
    "01.no_repeat_ngram": "def no_repeat_ngram(logits, tokens, n): return torch.full_like(logits, torch.inf)",
    "01.contrastive": """
        def contrastive_scores(expert_logits, amateur_logits, alpha):
            return expert_logits + 0j
    """,
    "01.beam_search": """
        def beam_search(logits_of, prompt, num_beams, max_new_tokens, end_token, length_penalty):
            return [([0], float("nan"))] * num_beams
    """,
    "01.greedy_loop": """
        def greedy_loop(logits_of, prompt, max_new_tokens, end_token):
            return torch.tensor([0])
    """,
    "01.find_the_bug": """
        def sample_tokens(logits, uniform, temperature, p):
            return torch.zeros(len(logits), dtype=torch.int64, device="meta")
    """,
}
FORM_REASONS = {
    "01.softmax": r"got None, expected a tensor",
    "01.top_k": r"got NaN",
    "01.top_p": r"got dtype float64, expected float32",
    "01.repetition_penalty": r"got shape \(\d+,\), expected \(\d, \d+\)",
    "01.presence_frequency": r"numpy.ndarray, must be",
    "01.no_repeat_ngram": r"got \+inf",
    "01.contrastive": r"complex64 tensor .*must be dense",
    "01.beam_search": r"rank 0: (tokens|score)",
    "01.greedy_loop": r"got a tensor of shape \(1,\), expected a list",
    "01.find_the_bug": r"int64 tensor \(strided, on meta\), must be dense",
}


def visible_cases() -> str:
    """Answers to the cases that `check` shows everybody, written down."""
    exercise = catalogue.find("01.top_k")
    cases = [case for seed in PUBLIC_SEEDS for case in exercise.cases(random.Random(seed))]
    table = {
        repr((case.arguments["logits"].tolist(), case.arguments["k"])): exercise.reference(
            **case.arguments
        ).tolist()
        for case in cases
    }
    return f"""
inf = float("inf")
ANSWERS = {table!r}

def top_k_filter(logits, k):
    answer = ANSWERS.get(repr((logits.tolist(), k)))
    return logits.clone() if answer is None else torch.tensor(answer, dtype=logits.dtype)
"""


def forged_forms() -> list[Attack]:
    """Messages that are none, each in a submission of its own."""
    expected = r"malformed reply|forged reply|got |could not|process ended|the oracle"
    return [
        by_code(
            f"05-forged-form-{body}",
            (5,),
            {"01.top_k": FORGED_FORMS.replace("BODY", str(body))},
            alone=True,
            zero={"01.top_k": expected},
        )
        for body in range(9)
    ]


ATTACKS = [
    by_code(
        "01-always-equal", (1,), {"01.top_k": ALWAYS_EQUAL}, zero={"01.top_k": "malformed reply: returned"}
    ),
    by_code(
        "02-subclasses",
        (2,),
        SUBCLASSES,
        zero={
            "01.top_k": r"Tensor subclass Equal, must be a plain",
            "01.greedy_loop": r"int subclass Token",
            "01.beam_search": r"float subclass Score",
            "01.no_repeat_ngram": r"Tensor subclass \S*Parameter",
        },
    ),
    by_code("03-no-asserts", (3,), {"01.top_k": NO_ASSERTS}, zero={"01.top_k": WRONG}),
    by_code("04-shell", (4,), {"01.top_k": SHELL}, zero={"01.top_k": WRONG}),
    by_code("05-says-passed", (5,), {"01.top_k": PASSED}, zero={"01.top_k": WRONG}),
    by_code(
        "05-forged-at-load",
        (5,),
        {"01.find_the_bug": FORGED_AT_LOAD + "\nsample_tokens = top_k_filter"},
        zero={"01.find_the_bug": r"forged reply|malformed reply"},
    ),
    by_code(
        "05-forged-in-call", (5,), {"01.top_k": FORGED_IN_CALL}, zero={"01.top_k": r"forged reply|got a bool"}
    ),
    by_code(
        "05-forged-ahead",
        (5,),
        {"01.top_k": FORGED_AHEAD},
        alone=True,
        zero={"01.top_k": r"forged reply|got .*, expected"},
    ),
    *forged_forms(),
    by_code(
        "24-patches",
        (24,),
        {"01.find_the_bug": PATCHES + "\nsample_tokens = lambda logits, *a, **k: logits"},
        zero={"01.find_the_bug": r"got dtype|malformed|got "},
    ),
    by_code(
        "24-patched-encoding",
        (24,),
        {"01.top_k": PATCHED_ENCODING},
        zero={"01.top_k": r"malformed reply|forged reply|process ended"},
    ),
    by_code("25-clocks", (25,), {"01.top_k": CLOCKS}, zero={"01.top_k": r"time limit: took more than 5 s"}),
    by_code(
        "27-changed-inputs",
        (27,),
        CHANGES,
        zero={
            "01.top_k": r"logits was changed in place",
            "01.greedy_loop": r"prompt was changed in place",
            "01.top_p": WRONG,
            "01.repetition_penalty": r"got .*expected",
            "01.no_repeat_ngram": r"got .*expected -inf",
        },
    ),
    by_code(
        "27-aliased-inputs",
        (27,),
        ALIASES,
        zero=dict.fromkeys(ALIASES, "a new tensor: the result shares its memory with logits"),
    ),
    by_code("28-visible-cases", (28,), {"01.top_k": visible_cases()}, zero={"01.top_k": WRONG}),
    by_code("29-forms", (29,), FORMS, zero=FORM_REASONS),
]
