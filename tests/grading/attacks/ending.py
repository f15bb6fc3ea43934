"""Attacks on the process that runs them: it ends, does not end, or takes others with it."""

from __future__ import annotations

from tests.grading.attacks.attack import HELD, by_code
from tests.grading.attacks.forging import RIGHT

LATE = r"time limit: took more than 5 s"

EXITS = {
    "01.top_k": """
        import sys
        sys.exit(0)
        raise SystemExit("100 %")
        raise KeyboardInterrupt
        raise GeneratorExit

        def top_k_filter(logits, k):
            sys.exit(0)
    """,
    "01.top_p": """
        raise SystemExit

        def top_p_filter(logits, p):
            raise SystemExit(0)
    """,
    "01.repetition_penalty": """
        exit(), quit()

        def repetition_penalty(logits, tokens, theta):
            raise KeyboardInterrupt("passed")
    """,
}

EXITS_HARD = {
    "01.top_k": """
        import os

        def top_k_filter(logits, k):
            os._exit(0)
    """,
    "01.top_p": """
        import os, signal

        def top_p_filter(logits, p):
            os.kill(os.getpid(), signal.SIGKILL)
    """,
    "01.repetition_penalty": """
        import ctypes

        def repetition_penalty(logits, tokens, theta):
            ctypes.string_at(0)
    """,
    "01.presence_frequency": """
        import os

        def presence_frequency(logits, tokens, presence, frequency):
            os.abort()
    """,
    "01.no_repeat_ngram": """
        import os

        def no_repeat_ngram(logits, tokens, n):
            os.closerange(0, 1024)
            return logits
    """,
    "01.contrastive": """
        import sys

        def contrastive_scores(expert_logits, amateur_logits, alpha):
            sys.setrecursionlimit(10**9)
            return contrastive_scores(expert_logits, amateur_logits, alpha)
    """,
}
ENDED = {
    "01.top_k": r"process ended: .*exit code 0",
    "01.top_p": r"process ended: .*SIGKILL",
    "01.repetition_penalty": r"process ended: .*SIGSEGV",
    "01.presence_frequency": r"process ended: .*SIGABRT",
    "01.no_repeat_ngram": r"process ended|malformed reply",
    "01.contrastive": r"process ended|raised: RecursionError|memory limit|time limit",
}

# What a device leaves behind, as it looks from Python: memory that is gone, and every further call failing.
DEVICE = {
    "01.top_k": """
        def top_k_filter(logits, k):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 79.00 GiB")
    """,
    "01.top_p": """
        def broken(*arguments, **options):
            raise RuntimeError("CUDA error: device-side assert triggered")

        def top_p_filter(logits, p):
            for name in "argmax clone exp masked_fill softmax sort topk where".split():
                setattr(torch, name, broken)
                setattr(torch.Tensor, name, broken)
            return logits.clone()
    """,
}

STOPS = """
    import os, signal

    def top_k_filter(logits, k):
        os.kill(os.getpid(), signal.SIGSTOP)
        return logits
"""

CATCHES = """
    import signal, threading, time

    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        try:
            signal.signal(number, signal.SIG_IGN)
        except BaseException:
            pass

    class Stays:
        def __del__(self): stay()

    def stay():
        while True:
            try:
                while True:
                    pass
            except BaseException:
                kept = Stays()

    def contrastive_scores(expert_logits, amateur_logits, alpha):
        threading.Thread(target=stay).start()
        stay()
"""

SLEEPS = """
    import time

    def top_k_filter(logits, k):
        time.sleep(10**6)
"""

# Holds the interpreter's lock: no thread of the process could watch it.
HOLDS_LOCK = """
    import re

    def top_k_filter(logits, k):
        re.match("(a+)+$", "a" * 64 + "b")
"""

ASKS_FOR_EVER = """
    def greedy_loop(logits_of, prompt, max_new_tokens, end_token):
        while True:
            try:
                logits_of(prompt)
            except ValueError:
                pass
"""

ASKS_TOO_MUCH = """
    def beam_search(logits_of, prompt, num_beams, max_new_tokens, end_token, length_penalty):
        while True:
            try:
                logits_of([[0]] * 60_000)
            except ValueError:
                pass
"""

LOOPS_AT_LOAD = """
    def sample_tokens(logits, uniform, temperature, p):
        return logits.argmax(-1)

    while True:
        pass
"""

EXITS_AT_LOAD = f"""{RIGHT}
import os

def top_k_filter(logits, k):
    return right(logits, k)

os._exit(0)
"""

KILLS_AT_LOAD = """
    import os, signal

    os.kill(os.getpid(), signal.SIGKILL)
"""

# Exceptions whose parts are the student's code, and which the worker has to describe.
EXCEPTIONS = {
    "01.top_k": """
        class Odd(Exception):
            def __str__(self): raise self
            __repr__ = __str__
            __class__ = property(lambda self: 1 / 0)

        def top_k_filter(logits, k):
            raise Odd
    """,
    "01.top_p": """
        class Odd(SyntaxError):
            filename = property(lambda self: "<cell ")
            msg = property(lambda self: "x" * 10**8)
            lineno = property(lambda self: 10**5000)

        def top_p_filter(logits, p):
            raise Odd
    """,
    "01.repetition_penalty": """
        def repetition_penalty(logits, tokens, theta):
            error = None
            for _ in range(100_000):
                error = ExceptionGroup("x", [error or ValueError()])
            raise error
    """,
    "01.presence_frequency": """
        def presence_frequency(logits, tokens, presence, frequency):
            raise ValueError("line\\n" * 10**6 + "\\ud800 \\x00 \\x1b[2J")
    """,
    "01.no_repeat_ngram": """
        class Name(type):
            __name__ = property(lambda cls: 1 / 0)

        class Odd(BaseException, metaclass=Name):
            pass

        def no_repeat_ngram(logits, tokens, n):
            raise Odd("passed")
    """,
}

FORKS = """
TRIES
import multiprocessing, pty, subprocess

def ended(pid):
    if pid == 0:
        os._exit(0)
    return refused(pid)

def stack():
    memory = ctypes.create_string_buffer(1 << 16)
    keep.append(memory)
    return ctypes.c_void_p(ctypes.addressof(memory) + (1 << 15))

keep = []
leave = ctypes.cast(libc._exit, ctypes.c_void_p)
true = [b"/bin/true", None]

def top_k_filter(logits, k):
    for _ in range(200):
        attempt("fork", lambda: ended(os.fork()))
    attempt("forkpty", lambda: ended(os.forkpty()[0]))
    attempt("pty.fork", lambda: ended(pty.fork()[0]))
    attempt("libc.fork", lambda: ended(libc.fork()))
    for program in ("/bin/true", "/usr/bin/true", "/bin/sh", sys.executable):
        attempt("posix_spawn", lambda: os.posix_spawn(program, [program], {}))
        attempt("posix_spawnp", lambda: os.posix_spawnp(program, [program], {}))
        attempt("subprocess", lambda: subprocess.Popen([program], stdin=subprocess.DEVNULL))
        attempt("session", lambda: subprocess.Popen([program], start_new_session=True, close_fds=False))
    attempt("system", lambda: os.system("true") == 0)
    attempt("popen", lambda: os.popen("echo x").read() == "x\\n")
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        attempt(f"multiprocessing {method}", lambda: context.Process(target=print).start())
    attempt("pool", lambda: multiprocessing.get_context("fork").Pool(2))
    for flags in (0, 0x100, 0x4100, 0x8000, 0x10000000, 0x20000000, 0x40000000):
        attempt(f"clone {flags:x}", lambda: refused(libc.clone(leave, stack(), flags | 17, None)))
    if os.uname().machine == "x86_64":
        attempt("fork by number", lambda: ended(libc.syscall(57)))
        attempt("clone by number", lambda: ended(libc.syscall(56, 17, 0, 0, 0, 0)))
        attempt("x32 fork", lambda: ended(libc.syscall(0x40000000 + 57)))
    arguments = (ctypes.c_uint64 * 11)(0, 0, 0, 0, 17)
    attempt("clone3", lambda: ended(libc.syscall(435, ctypes.byref(arguments), 88)))
    if not won:  # there would be nobody left to tell
        attempt("execve", os.execve, sys.executable, [sys.executable, "-c", ""], {})
    tell()
"""

# Harmless to its own answer: it is right, and keeps its points; the daemon must be gone.
DAEMON = f"""{RIGHT}
import os, time

def daemon():
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    open("<<canaries>>/daemon", "w").close()
    for fd in range(64):
        try:
            os.close(fd)
        except OSError:
            pass
    time.sleep(600)
    os._exit(0)

def top_k_filter(logits, k):
    try:
        daemon()
    except OSError:
        pass
    return right(logits, k)
"""

THREADS = """
TRIES
import threading, time

def top_k_filter(logits, k):
    threading.stack_size(1 << 15)
    started = 0
    try:
        while started < 20_000:
            threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
            started += 1
    except BaseException as error:
        held.append(str(error))
    if started > 3000:
        won.append(f"{started} threads")
    tell()
"""


ATTACKS = [
    by_code(
        "06-exits",
        (6,),
        EXITS,
        zero={
            "01.top_k": r"raised: SystemExit",
            "01.top_p": r"raised: SystemExit",
            "01.repetition_penalty": r"raised: KeyboardInterrupt: passed",
        },
    ),
    by_code("07-exits-hard", (7, 45), EXITS_HARD, zero=ENDED),
    by_code(
        "45-device",
        (45,),
        DEVICE,
        zero=dict.fromkeys(DEVICE, r"raised: \w+( \(a kind of \w+\))?: CUDA (error|out of memory)"),
    ),
    by_code("07-stops", (7,), {"01.top_k": STOPS}, zero={"01.top_k": LATE}),
    by_code("07-exits-at-load", (7,), {"01.top_k": EXITS_AT_LOAD}, zero={"01.top_k": "process ended"}),
    by_code("07-kills-at-load", (7,), {"01.top_k": KILLS_AT_LOAD}, zero={"01.top_k": "process ended"}),
    by_code("08-catches-all", (8,), {"01.contrastive": CATCHES}, zero={"01.contrastive": LATE}),
    by_code("09-sleeps", (9,), {"01.top_k": SLEEPS}, zero={"01.top_k": LATE}),
    by_code("09-holds-the-lock", (9,), {"01.top_k": HOLDS_LOCK}, zero={"01.top_k": LATE}),
    by_code("09-asks-for-ever", (9,), {"01.greedy_loop": ASKS_FOR_EVER}, zero={"01.greedy_loop": LATE}),
    by_code("09-asks-too-much", (9,), {"01.beam_search": ASKS_TOO_MUCH}, zero={"01.beam_search": LATE}),
    by_code(
        "09-loops-at-load",
        (9,),
        {"01.find_the_bug": LOOPS_AT_LOAD},
        zero={"01.find_the_bug": r"time limit: took more than \d+ s"},
    ),
    by_code(
        "09-odd-exceptions",
        (9,),
        EXCEPTIONS,
        zero=dict.fromkeys(EXCEPTIONS, "raised|process ended|memory limit"),
    ),
    by_code("10-forks", (10,), {"01.top_k": FORKS}, zero={"01.top_k": HELD}),
    by_code("11-daemon", (11,), {"01.top_k": DAEMON}),
    by_code("12-threads", (12,), {"01.top_k": THREADS}, zero={"01.top_k": HELD}),
]
