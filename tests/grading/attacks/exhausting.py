"""Attacks on the machine: memory, disk, output, and answers too large to read."""

from __future__ import annotations

from tests.grading.attacks.attack import HELD, by_code
from tests.grading.attacks.forging import FORGERY, RIGHT

MEMORY = {
    "01.top_k": """
        def top_k_filter(logits, k):
            return bytearray(50_000_000_000)
    """,
    "01.top_p": """
        def top_p_filter(logits, p):
            return torch.zeros(12_500_000_000)
    """,
    "01.repetition_penalty": """
        def repetition_penalty(logits, tokens, theta):
            held = []
            while True:
                held.append(torch.ones(1_000_000))
    """,
    "01.presence_frequency": """
        def presence_frequency(logits, tokens, presence, frequency):
            return "x" * 10**11
    """,
}

# Takes what it can get, by every way there is, and keeps on trying.
HOARD = """
TRIES
import mmap, resource, time

def shared(size):
    memory = mmap.mmap(-1, size, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    memory.write(b"x" * size)
    return memory

def private(size):
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for place in range(0, size, 4096):
        memory[place] = 1
    return memory

def of_no_file(size):
    fd = os.memfd_create("hoard")
    os.write(fd, b"x" * size)
    return fd

def in_pipes(size):
    ends = os.pipe()
    os.set_blocking(ends[1], False)
    os.write(ends[1], b"x" * (1 << 16))
    return ends

def in_shared_folder(size):
    with open(f"/dev/shm/attack-left-{len(kept)}", "wb") as file:
        file.write(b"x" * size)

def of_system_v(size):
    return called(29, 194, 0, size, 0o1600) or 1 / 0

kept = []

def top_k_filter(logits, k):
    for take in (bytearray, torch.ones, shared, private, of_no_file, in_pipes, in_shared_folder, of_system_v):
        for size in (1 << 28, 1 << 26, 1 << 24, 1 << 22):
            failures = 0
            while failures < 3 and len(kept) < 3000:
                try:
                    kept.append(take(size))
                except BaseException:
                    failures += 1
    for memory in kept:
        if isinstance(memory, bytearray):
            memory[::4096] = b"x" * len(memory[::4096])
    time.sleep(0.1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    (won if peak > 2000 else held).append(f"{peak} MiB")
    tell()
"""

DISK = {
    "01.top_k": """
        def top_k_filter(logits, k):
            with open("large", "wb") as file:
                while True:
                    file.write(bytes(1 << 20))
    """,
    "01.top_p": """
        def top_p_filter(logits, p):
            for name in range(10**9):
                with open(str(name), "wb") as file:
                    file.write(bytes(60 << 20))
    """,
    "01.repetition_penalty": """
        import os

        def repetition_penalty(logits, tokens, theta):
            for name in range(1000):
                with open(str(name), "wb") as file:
                    os.posix_fallocate(file.fileno(), 0, 60 << 20)
    """,
    "01.presence_frequency": """
        import os

        def presence_frequency(logits, tokens, presence, frequency):
            for name in range(10**6):
                os.close(os.open(f"{name}", os.O_WRONLY | os.O_CREAT))
    """,
    "01.no_repeat_ngram": """
        import os

        def no_repeat_ngram(logits, tokens, n):
            for name in range(10**6):
                if name % 50 == 0:  # a disk may take a millisecond to be rid of a folder
                    os.mkdir(f"{name // 50}")
                os.close(os.open(f"{name // 50}/{name}", os.O_WRONLY | os.O_CREAT))
    """,
}
DISK_REASONS = {
    "01.top_k": r"disk limit|OSError: \[Errno 27\] File too large",
    "01.top_p": r"disk limit: wrote more than 256 MiB",
    "01.repetition_penalty": r"disk limit: wrote more than 256 MiB",
    # On a slow disk they do not get that far.
    "01.presence_frequency": r"disk limit: made more than 10,000 files|time limit",
    "01.no_repeat_ngram": r"disk limit: made more than 10,000 files|time limit",
}

# Each fills 600 MiB where a watchman may not look, waits to be seen, and then is right. The wait is shorter
# than the time limit, and much longer than a busy watchman needs.
FILL = f"""{RIGHT}
import ctypes, mmap, os, threading, time

libc = ctypes.CDLL(None, use_errno=True)

def fill(name):
    for number in range(10):
        fd = os.open(f"{{name}}{{number}}", os.O_RDWR | os.O_CREAT)
        os.posix_fallocate(fd, 0, 60 << 20)
        os.close(fd)

def unlinked():
    # Open files, still empty, that have no name.
    fds = []
    for number in range(10):
        fds.append(os.open(f"x{{number}}", os.O_RDWR | os.O_CREAT))
        os.unlink(f"x{{number}}")
    return fds

WAY

done = False

def top_k_filter(logits, k):
    global done
    if not done:
        done = True
        hide()
        time.sleep(4)
    return right(logits, k)
"""
WAYS = {
    "unlinked": """
def hide():
    for fd in unlinked():
        os.posix_fallocate(fd, 0, 60 << 20)
""",
    "closed-folder": """
def hide():
    os.mkdir("closed", 0o300)
    fill("closed/x")
""",
    "deep": """
def hide():
    for _ in range(30):
        os.mkdir("x" * 250)
        os.chdir("x" * 250)
    fill("x")
""",
    "other-table": """
def hide():
    # A thread with a table of files of its own would keep open what this one closes.
    fds = unlinked()
    stack = ctypes.create_string_buffer(1 << 16)
    top = ctypes.c_void_p(ctypes.addressof(stack) + (1 << 15))
    vm, fs, sighand, thread = 0x100, 0x200, 0x800, 0x10000
    wait = ctypes.cast(libc.pause, ctypes.c_void_p)
    cloned = libc.clone(wait, top, vm | fs | sighand | thread, None) >= 0
    globals()["stack"] = stack
    for fd in fds:
        os.posix_fallocate(fd, 0, 60 << 20)
        if cloned:
            os.close(fd)
""",
    "mapped": """
libc.mmap.restype = ctypes.c_void_p

def hide():
    # What is mapped lasts without a name and without an open file; Python's own mmap keeps one.
    for fd in unlinked():
        os.posix_fallocate(fd, 0, 60 << 20)
        if libc.mmap(None, ctypes.c_size_t(4096), 1, 1, fd, ctypes.c_long(0)) == 2**64 - 1:
            raise OSError(ctypes.get_errno(), "mmap")
        os.close(fd)
""",
    "reserved": """
def hide():
    # FALLOC_FL_KEEP_SIZE: past the end of a file no limit on its size holds. Where that is refused, write.
    words = [ctypes.c_long(size) for size in (0, 600 << 20)]
    fd = os.open("reserved", os.O_RDWR | os.O_CREAT)
    if libc.fallocate(fd, 1, *words) < 0:
        fill("x")
""",
    "no-leader": """
def hide():
    # The first thread ends and the others go on: what is asked of the process by its number is gone.
    def rest():
        time.sleep(0.2)
        for fd in unlinked():
            os.posix_fallocate(fd, 0, 60 << 20)
        time.sleep(600)
    threading.Thread(target=rest).start()
    exit_thread = {"x86_64": 60, "aarch64": 93}[os.uname().machine]
    libc.syscall(ctypes.c_long(exit_thread), ctypes.c_long(0))
""",
}

OUTPUT = {
    "01.top_k": """
        def top_k_filter(logits, k):
            while True:
                print("PASSED " * 1000)
    """,
    "01.top_p": """
        import os

        def top_p_filter(logits, p):
            while True:
                os.write(2, b"x" * 65536)
    """,
    "01.repetition_penalty": """
        import os

        def repetition_penalty(logits, tokens, theta):
            for _ in range(2**18):
                os.write(1, b"\\x00\\xff\\x1b[2J")
    """,
    "01.find_the_bug": """
        import sys

        while True:
            sys.stderr.write("x" * 10**6)
    """,
}

LARGE = {
    "01.top_k": """
        def top_k_filter(logits, k):
            return torch.zeros(13_000_000)
    """,
    "01.greedy_loop": """
        def greedy_loop(logits_of, prompt, max_new_tokens, end_token):
            nested = []
            for _ in range(100_000):
                nested = [nested]
            return nested
    """,
    "01.beam_search": """
        def beam_search(logits_of, prompt, num_beams, max_new_tokens, end_token, length_penalty):
            return [([10**5000], 0.0)]
    """,
    "01.no_repeat_ngram": """
        def no_repeat_ngram(logits, tokens, n):
            circle = []
            circle.append(circle)
            return circle
    """,
    "01.contrastive": """
        def contrastive_scores(expert_logits, amateur_logits, alpha):
            return list(range(300_000))
    """,
    "01.softmax": """
        def softmax_with_temperature(logits, temperature):
            return torch.zeros(1).expand(10**12)
    """,
    "01.top_p": """
        def top_p_filter(logits, p):
            return {"x" * 5_000_000: "y" * 5_000_000}
    """,
}

# Past the worker's own checks, straight to the judge.
LARGE_FRAMES = {
    "01.top_k": FORGERY
    + """
def top_k_filter(logits, k):
    os.write(3, struct.pack(">I", 2**32 - 1) + b"x" * 1000)
""",
    "01.top_p": FORGERY
    + """
def top_p_filter(logits, p):
    os.set_blocking(3, True)
    with open(3, "wb", closefd=False) as channel:
        channel.write(frame(b"[" * 5_000_000))
""",
    "01.repetition_penalty": FORGERY
    + """
def repetition_penalty(logits, tokens, theta):
    with open(3, "wb", closefd=False) as channel:
        channel.write(frame(b'{"nonce": ' + b"9" * 4_000_000 + b"}"))
""",
    "01.presence_frequency": FORGERY
    + """
def presence_frequency(logits, tokens, presence, frequency):
    nonce = nonces()[-1]
    with open(3, "wb", closefd=False) as channel:
        channel.write(frame({"nonce": nonce, "value": ["x", "float32", [2**40, 0, 2**40]]}))
""",
    "01.no_repeat_ngram": FORGERY
    + """
def no_repeat_ngram(logits, tokens, n):
    nonce = nonces()[-1].encode()
    items = b",".join([b"[]"] * 1_000_000)
    with open(3, "wb", closefd=False) as channel:
        channel.write(frame(b'{"nonce": "' + nonce + b'", "value": ["l",' + items + b"]}"))
""",
}

ATTACKS = [
    by_code("13-memory", (13,), MEMORY, zero=dict.fromkeys(MEMORY, "memory limit|time limit")),
    by_code("13-hoard", (13,), {"01.top_k": HOARD}, zero={"01.top_k": f"{HELD}|(memory|disk|time) limit"}),
    by_code("14-disk", (14, 15), DISK, zero=DISK_REASONS),
    *[
        by_code(
            f"14-disk-{way}",
            (14,),
            {"01.top_k": FILL.replace("WAY", code)},
            alone=True,
            zero={"01.top_k": r"disk limit"},
        )
        for way, code in WAYS.items()
    ],
    by_code(
        "16-output", (16,), OUTPUT, zero=dict.fromkeys(OUTPUT, r"output limit: printed more than 1,048,576")
    ),
    by_code("17-large", (17,), LARGE, zero=dict.fromkeys(LARGE, r"reply too large")),
    by_code(
        "17-large-frames",
        (17,),
        LARGE_FRAMES,
        zero=dict.fromkeys(LARGE_FRAMES, r"reply too large|malformed reply"),
    ),
]
