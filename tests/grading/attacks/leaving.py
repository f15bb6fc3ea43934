"""Attacks that leave something: in the course's package, in shared folders, in memory that outlives them."""

from __future__ import annotations

from tests.grading.attacks.attack import HELD, by_code
from tests.grading.attacks.forging import RIGHT

# What would do harm if it worked is tried on a file of ours that lies as much outside as the package.
PACKAGE = """
TRIES
import llmcourse, mmap

top = os.path.dirname(llmcourse.__file__)
site = os.path.dirname(os.path.dirname(torch.__file__))
places = [top, f"{top}/grading", f"{top}/__pycache__", f"{site}/torch", site, os.path.dirname(os.__file__),
          "<<repository>>", "<<repository>>/labs", sys.prefix, "<<canaries>>"]
target = "<<canaries>>/target"
files = [f"{top}/__init__.py", f"{top}/cli.py", torch.__file__, os.__file__]
lab = "<<repository>>/labs/01_decoding.ipynb"

def cut(path):
    return os.close(os.open(path, os.O_RDONLY | os.O_TRUNC))

def moved_to(folder):
    open("mine", "w").close()
    os.rename("mine", f"{folder}/attack-left-moved")

def top_k_filter(logits, k):
    for folder in places:
        for name in ("attack-left.py", "attack-left.pth"):
            attempt(f"create {folder}/{name}", lambda: open(f"{folder}/{name}", "x"))
        attempt(f"mkdir {folder}", os.mkdir, f"{folder}/attack-left")
        attempt(f"move to {folder}", moved_to, folder)
        attempt(f"link in {folder}", os.symlink, "/", f"{folder}/attack-left-link")
        attempt(f"node in {folder}", os.mkfifo, f"{folder}/attack-left-fifo")
        attempt(f"nameless {folder}", os.open, folder, os.O_TMPFILE | os.O_RDWR)
        attempt(f"touch {folder}", os.utime, folder)
    for path in (*files, lab, target):
        for mode in ("r+b", "ab"):
            attempt(f"{mode} {path}", open, path, mode)
        attempt(f"touch {path}", os.utime, path)
        attempt(f"chmod {path}", os.chmod, path, 0o644)
        attempt(f"chown {path}", os.chown, path, -1, -1)
        attempt(f"xattr {path}", os.setxattr, path, "user.attack", b"left")
        attempt(f"link {path}", os.link, path, f"mine{len(held)}")
    for path in files:
        with open(path, "rb") as file:
            attempt(f"through /proc {path}", os.open, f"/proc/self/fd/{file.fileno()}", os.O_WRONLY)
            attempt(f"map {path}", mmap.mmap, file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_WRITE)
            attempt(f"fchmod {path}", os.fchmod, file.fileno(), 0o644)
            attempt(f"fsetxattr {path}", os.setxattr, file.fileno(), "user.attack", b"left")
    open("mine", "w").close()
    for action in (cut, os.unlink, lambda path: os.truncate(path, 0), lambda path: os.rename(path, "taken"),
                   lambda path: os.replace("mine", path)):
        attempt(f"harm {target}", action, target)
    tell()
"""

LEAVES = f"""{RIGHT}
import ctypes, fcntl, os, resource, socket, sys

libc = ctypes.CDLL(None)
NAME = "attack-left-behind"

def leave(action, *arguments):
    try:
        return action(*arguments)
    except BaseException:
        return None

def top_k_filter(logits, k):
    for folder in (".", "..", "/tmp", "/var/tmp", "/dev/shm", "/run/lock", "<<temporary>>", "<<canaries>>"):
        leave(lambda: open(f"{{folder}}/{{NAME}}", "w").write("left"))
        leave(os.mkdir, f"{{folder}}/{{NAME}}-folder", 0)
    for name in (b"not utf-8 \\xff\\xfe", b"line\\nbreak", b"-rf", b" ", b"\\x1b[2J"):
        leave(lambda: open(name, "w").close())
    leave(os.mkdir, "closed", 0)
    leave(os.mkdir, "only-write", 0o300)
    leave(lambda: open("only-write/file", "w").write("left"))
    here = os.getcwd()
    for _ in range(15):
        leave(os.mkdir, "d" * 200)
        leave(os.chdir, "d" * 200)
    leave(lambda: open("deep", "w").write("left"))
    os.chdir(here)
    leave(os.mkfifo, "pipe")
    leave(libc.shmget, 0x5EED, 4096, 0o1666)
    leave(libc.semget, 0x5EED, 1, 0o1666)
    leave(libc.msgget, 0x5EED, 0o1666)
    leave(libc.shm_open, b"/attack-left", 0o102, 0o666)
    leave(libc.sem_open, b"/attack-left", 0o100, 0o666, 1)
    leave(lambda: globals().setdefault("kept", socket.socket(socket.AF_UNIX)).bind("\\0attack-left"))
    leave(lambda: libc.syscall(248, b"user", b"attack-left", b"x", 1, -3))
    os.environ["ATTACK_LEFT"] = "left"
    sys.path.insert(0, here)
    torch.manual_seed(999)
    torch.set_num_threads(3)
    os.umask(0)
    return right(logits, k)
"""

LOOKS = """
TRIES
import glob, socket

def top_p_filter(logits, p):
    NAME = "attack-left-behind"
    for folder in (".", "..", "/tmp", "/var/tmp", "/dev/shm", "/run/lock", "<<temporary>>"):
        attempt(f"file in {folder}", lambda: os.stat(f"{folder}/{NAME}"))
        attempt(f"folder in {folder}", lambda: os.stat(f"{folder}/{NAME}-folder"))
    attempt("own folder", lambda: os.listdir(".") != [])
    attempt("glob", lambda: glob.glob("<<temporary>>/*/*") != [])
    attempt("shm", lambda: refused(libc.shmget(0x5EED, 4096, 0o666)))
    attempt("sem", lambda: refused(libc.semget(0x5EED, 1, 0o666)))
    attempt("msg", lambda: refused(libc.msgget(0x5EED, 0o666)))
    attempt("shm_open", lambda: refused(libc.shm_open(b"/attack-left", 2, 0o666)))
    attempt("socket", lambda: socket.socket(socket.AF_UNIX).connect("\\0attack-left"))
    attempt("environment", lambda: os.environ["ATTACK_LEFT"])
    attempt("path", lambda: "" in sys.path)
    attempt("threads", lambda: torch.get_num_threads() == 3)
    attempt("global", lambda: kept)
    tell()
"""

ATTACKS = [
    by_code("41-package", (41,), {"01.top_k": PACKAGE}, zero={"01.top_k": HELD}),
    # The first question leaves things, the second looks for them; and so does another submission.
    by_code("42-leaves", (42,), {"01.top_k": LEAVES, "01.top_p": LOOKS}, zero={"01.top_p": HELD}),
    by_code("42-looks", (42,), {"01.top_p": LOOKS}, zero={"01.top_p": HELD}),
]
