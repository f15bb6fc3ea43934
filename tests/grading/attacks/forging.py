"""Attacks on the judgement: answers that claim to be right, and messages that say they were."""

from __future__ import annotations

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
    '''Wrong ones, and what can be found in this process: the last is that of the question, in a call.'''
    things, step = gc.get_objects()[-20_000:], sys._getframe()
    while step:
        things += step.f_locals.values()
        step = step.f_back
    found = ["", "0" * 32]
    for thing in things:
        try:
            if type(getattr(thing, "nonce", None)) is str:
                found.append(thing.nonce)
            if type(thing) is dict and type(thing.get("nonce")) is str:
                found.append(thing["nonce"])
        except BaseException:
            pass
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
        message = {{"nonce": nonces()[-1], "loaded": ["l"], "has": True, "passed": True, "value": True}}
        everywhere(frame(message))
        sent.set()
sent = threading.Event()
threading.Thread(target=flood, daemon=True).start()
sent.wait(10)  # else the honest answer may come first
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
    message = {{"nonce": nonces()[-1], "operations": ["l"], "mutated": ["l"],
               "value": ["x", "float32", list(logits.shape)]}}
    for _ in range(100):
        everywhere(frame(message, data))
    return right(logits, k)
"""

FORGED_FORM = f"""{FORGERY}
def top_k_filter(logits, k):
    os.write(3, frame({{"nonce": nonces()[-1], **BODY}}))
    return logits
"""
# Messages with the right nonce that are none, and what is said of them.
BODIES = {
    '{"failed": "pass", "message": ""}': "a failure that is none",
    '{"failed": "raised", "message": 7}': "a failure that is none",
    '{"value": ["l"], "operations": ["l", ["l"]]}': "operations that are no names",
    '{"value": ["l"], "mutated": "x"}': "mutated that are no names",
    '{"value": ["l"], "counts": {"peak_bytes": "0"}}': "counts that are none",
    '{"value": ["l"], "aliased": 7}': "aliased that are no names",
    '{"value": ["l"], "operations": [["l"]] * 5}': "an array without a known tag",
    '{"value": ["x", "float32", [1, -10]]}': "a tensor whose shape is no list of sizes",
    '{"value": ["x", "object", [1]]}': "a tensor of unknown dtype 'object'",
    '{"value": ["o", "logits_of"]}': "an array without a known tag",
    '{"ask": "__class__", "arguments": ["t"], "options": {}}': "a call of an oracle __class__",
    '{"ask": 1}': "a call of an oracle without name",
    '{"loaded": 0, "cell": 10**9, "machinery": "fork server"}': "no answer",
    '{"machinery": "the sandbox cannot be entered"}': "no answer",
}

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


def forged_forms() -> list[Attack]:
    """Each in a submission of its own."""
    return [
        by_code(
            f"05-forged-form-{number}",
            (5,),
            {"01.top_k": FORGED_FORM.replace("BODY", body)},
            alone=True,
            zero={"01.top_k": f"malformed reply: .*{said}"},
        )
        for number, (body, said) in enumerate(BODIES.items())
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
        "05-forged-in-call",
        (5,),
        {"01.top_k": FORGED_IN_CALL},
        zero={"01.top_k": "forged reply: sent an answer to another"},
    ),
    by_code(
        "05-forged-ahead",
        (5,),
        {"01.top_k": FORGED_AHEAD},
        alone=True,
        zero={"01.top_k": WRONG},
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
]
