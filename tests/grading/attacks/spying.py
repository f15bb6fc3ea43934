"""Attacks on what a student must not see or touch: tests, grades, others' work, other processes, the net."""

from __future__ import annotations

from tests.grading.attacks.attack import HELD, by_code

HIDDEN_TESTS = """
TRIES
import glob, importlib, importlib.machinery, importlib.util, io, linecache, pkgutil, sqlite3, subprocess

hidden = [
    "<<package>>/grading/exercises/decoding/top_k.py", "<<package>>/grading/exercises/catalogue.py",
    "<<package>>/grading/judge.py", "<<package>>/grading/question.py", "<<package>>/grading/process/wire.py",
    "<<package>>/decoding/truncation.py", "<<repository>>/solutions/01_decoding.ipynb",
    "<<repository>>/solutions/source/01_decoding.py", "<<repository>>/tests/conftest.py",
    "<<repository>>/pyproject.toml", "<<repository>>/.git/HEAD",
]

def cached(path):
    return importlib.util.cache_from_source(path)

def imported(name):
    sys.meta_path[:] = [importlib.machinery.BuiltinImporter, importlib.machinery.PathFinder]
    for known in [known for known in sys.modules if known.startswith("llmcourse")]:
        del sys.modules[known]
    sys.path.insert(0, "<<repository>>")
    return importlib.import_module(name).top_k_filter

def loaded(path):
    loader = importlib.machinery.SourceFileLoader("llmcourse.grading.exercises.decoding.top_k", path)
    return loader.get_code("llmcourse.grading.exercises.decoding.top_k").co_consts

def through_self(path):
    return open(f"/proc/self/root{path}").read()

def through_fd(path):
    fd = os.open(os.path.dirname(path), os.O_PATH)
    return os.open(os.path.basename(path), os.O_RDONLY, dir_fd=fd)

def top_k_filter(logits, k):
    for path in hidden:
        attempt(f"open {path}", lambda: open(path, "rb").read(1))
        attempt(f"os.open {path}", os.open, path, os.O_RDONLY)
        attempt(f"open to write {path}", os.open, path, os.O_WRONLY)
        attempt(f"through /proc {path}", through_self, path)
        attempt(f"through a folder {path}", through_fd, path)
        attempt(f"linecache {path}", lambda: len(linecache.getlines(path)) > 0)
        attempt(f"libc {path}", lambda: refused(libc.open(path.encode(), 0)))
        attempt(f"link to {path}", os.symlink, path, f"link{len(held)}")
        attempt(f"second name of {path}", os.link, path, f"name{len(held)}")
        attempt(f"torch {path}", lambda: torch.UntypedStorage.from_file(path, False, 16))
        if path.endswith(".py"):
            attempt(f"compiled {path}", lambda: open(cached(path), "rb").read(1))
            attempt(f"loader {path}", loaded, path)
    # What lies in the package's folders may be listed, as Python does to import from them; not read.
    for folder in ("<<repository>>", "<<repository>>/solutions", "<<repository>>/tests"):
        attempt(f"list {folder}", lambda: sorted(os.listdir(folder)) != [])
        attempt(f"glob {folder}", lambda: glob.glob(f"{folder}/**/*.py", recursive=True) != [])
    attempt("get_data", lambda: pkgutil.get_data("llmcourse", "decoding/truncation.py"))
    for name in ("llmcourse.decoding.truncation", "llmcourse.grading.exercises.decoding.top_k"):
        attempt(f"import {name}", lambda: importlib.import_module(name))
        attempt(f"import without a guard {name}", imported, name)
    tell()
"""

INSIDE = """
TRIES
import gc, types

words = "Exercise Mutant mass_between examine HINTS PUBLIC_SEEDS Gradebook secret expected reference".split()
words += "seed seeds exercise case label".split()

def tells(thing):
    '''Whether a function, class or module of the judge's is here.'''
    module = str(getattr(thing, "__module__", ""))
    own = "process sandbox answer printable".split()
    return module.startswith("llmcourse.grading.") and module.split(".")[2] not in own

def frames():
    step = sys._getframe()
    while step:
        yield step
        step = step.f_back

def top_k_filter(logits, k):
    for thing in gc.get_objects():
        try:
            if isinstance(thing, (type, types.FunctionType)) and tells(thing):
                won.append(f"gc {thing.__module__}.{thing.__name__}")
        except BaseException:
            pass
    held.append("gc")
    gc.unfreeze()
    for thing in gc.get_objects():
        try:
            if isinstance(thing, (type, types.FunctionType)) and tells(thing):
                won.append(f"frozen {thing.__module__}.{thing.__name__}")
        except BaseException:
            pass
    held.append("gc of what was frozen")
    for frame in frames():
        for name in (*frame.f_locals, *frame.f_globals):
            if name in words:
                won.append(f"frame {frame.f_code.co_filename} {name}")
    held.append("frames")
    for name in ("In", "Out", "_ih", "_oh", "get_ipython", "_", "__"):
        attempt(name, lambda: globals()[name])
    for name in list(sys.modules):
        if name.startswith(("llmcourse.grading.", "llmcourse.decoding")):
            (held if name == "llmcourse.grading.selfcheck" else won).append(name)
    attempt("canary in the environment", lambda: os.environ["ATTACK_CANARY"])
    attempt("home in the environment", lambda: "<<home>>" in os.environ.values())
    others = sorted({os.getppid(), 1, os.getpgrp(), os.getsid(0), *range(os.getpid() - 40, os.getpid() + 40)})
    for pid in [*others, "self", "thread-self"]:
        if pid == os.getpid():
            continue
        for file in "mem environ maps cmdline stat status auxv syscall fd/0 net/tcp".split():
            attempt(f"/proc/{pid}/{file}", lambda: len(open(f"/proc/{pid}/{file}", "rb").read(64)) > 0)
        for file in ("root", "exe", "fd/3", *(["cwd"] if isinstance(pid, int) else [])):
            attempt(f"through /proc/{pid}/{file}", lambda: os.listdir(f"/proc/{pid}/{file}/"))
    for folder in ("/proc", "/proc/self/fd", "/proc/sys", "/sys/kernel", "/dev", "/dev/pts", "/run"):
        attempt(f"list {folder}", lambda: os.listdir(folder))
    for fd in range(3, 64):
        try:
            target = os.fstat(fd)
        except OSError:
            continue
        (held if fd == 3 else won).append(f"fd {fd} is open")
    tell()
"""

GRADEBOOK = """
TRIES
import shutil, sqlite3

names = "gradebook.sqlite grades.csv grades.json .grading.lock new".split()
files = [f"<<out>>/{name}" for name in names]

def top_k_filter(logits, k):
    for path in files:
        attempt(f"read {path}", lambda: open(path, "rb").read(16))
        for mode in ("r+b", "wb", "ab", "xb"):
            attempt(f"{mode} {path}", open, path, mode)
        for flags in (os.O_TRUNC, os.O_CREAT, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_TMPFILE | os.O_RDWR):
            attempt(f"flags {flags} {path}", os.open, path, flags)
        attempt(f"truncate {path}", os.truncate, path, 0)
        attempt(f"chmod {path}", os.chmod, path, 0o777)
        attempt(f"chown {path}", os.chown, path, os.getuid(), -1)
        attempt(f"utime {path}", os.utime, path)
        attempt(f"unlink {path}", os.unlink, path)
        attempt(f"rename {path}", os.rename, path, path + "x")
        attempt(f"take {path}", os.rename, path, "taken")
        open("mine", "w").close()
        attempt(f"replace {path}", os.replace, "mine", path)
        attempt(f"link {path}", os.link, path, "mine2")
        attempt(f"setxattr {path}", os.setxattr, path, "user.x", b"x")
    attempt("sqlite", lambda: sqlite3.connect(files[0]).execute("UPDATE questions SET points = 8").fetchall())
    attempt("sqlite to read", lambda: sqlite3.connect(f"file:{files[0]}?mode=ro", uri=True).execute(
        "SELECT value FROM meta").fetchall())
    attempt("list", os.listdir, "<<out>>")
    attempt("mkdir", os.mkdir, "<<out>>/folder")
    attempt("rmdir", os.rmdir, "<<out>>/feedback")
    attempt("rmtree", shutil.rmtree, "<<out>>")
    attempt("journal", lambda: open("<<out>>/gradebook.sqlite-journal", "w"))
    tell()
"""

OTHERS = """
TRIES
import glob

here = os.getcwd()

def entered(folder):
    os.chdir(folder)
    try:
        return os.listdir(".")
    finally:
        os.chdir(here)

def top_k_filter(logits, k):
    for path in (
        "<<submissions>>/victim.ipynb", "<<home>>/secret.txt", "<<home>>/.ssh/id_ed25519", "/etc/shadow",
        "/etc/passwd", "/etc/hostname", "/etc/resolv.conf", "/proc/1/environ", "/dev/mem", "/dev/kmsg",
        os.path.expanduser("~/.bash_history"), os.path.join("/root", ".bashrc"),
        "../lock", "../log", "/proc/self/cwd/../lock",
    ):
        attempt(f"read {path}", lambda: len(open(path, "rb").read(8)) > 0)
        attempt(f"write {path}", os.open, path, os.O_WRONLY)
    folders = "/ /home /root /etc /tmp .. /var /mnt /usr/local /run /dev/shm /proc".split()
    for folder in ("<<submissions>>", "<<home>>", "<<temporary>>", *folders):
        attempt(f"list {folder}", os.listdir, folder)
        attempt(f"enter {folder}", entered, folder)
        attempt(f"create in {folder}", lambda: open(f"{folder}/attack-left", "w"))
        attempt(f"mkdir in {folder}", os.mkdir, f"{folder}/attack-left-folder")
    attempt("other workers", lambda: glob.glob("<<temporary>>/*/worker-*") != [])
    for number in range(40):
        attempt(f"worker {number}", lambda: os.listdir(f"../worker-{number}"
            if not os.getcwd().endswith(f"-{number}") else "/"))
    tell()
"""

NETWORK = """
TRIES
import socket, urllib.request

def connected(family, kind, address):
    with socket.socket(family, kind) as sock:
        sock.settimeout(0.2)
        return sock.connect(address)

def received():
    '''A file descriptor of somebody else's, through the one socket that there is.'''
    with socket.socket(fileno=os.dup(3)) as channel:
        channel.setblocking(False)
        return socket.send_fds(channel, [b"x"], [0])

def top_k_filter(logits, k):
    for family in range(0, 46):
        for kind in (1, 2, 3, 4, 5, 6, 10):
            attempt(f"socket {family} {kind}", lambda: socket.socket(family, kind).close())
        attempt(f"socketpair {family}", lambda: socket.socketpair(family))
        attempt(f"libc socket {family}", lambda: refused(libc.socket(family, 1, 0)))
    for protocol in (0, 4, 9, 15, 16):
        attempt(f"netlink {protocol}", lambda: socket.socket(16, 3, protocol).close())
    for address in (("127.0.0.1", 9), ("1.1.1.1", 53), ("169.254.169.254", 80)):
        attempt(f"tcp {address}", connected, socket.AF_INET, socket.SOCK_STREAM, address)
        attempt(f"udp {address}", connected, socket.AF_INET, socket.SOCK_DGRAM, address)
    attempt("vsock", connected, 40, socket.SOCK_STREAM, (2, 1024))
    attempt("abstract", connected, socket.AF_UNIX, socket.SOCK_STREAM, "\\0llmcourse-worker-60800")
    attempt("names", socket.getaddrinfo, "example.org", 80)
    attempt("url", lambda: urllib.request.urlopen("http://127.0.0.1:9/", timeout=0.2))
    address = ctypes.create_string_buffer(b"\\x02\\x00\\x00\\x09\\x7f\\x00\\x00\\x01" + bytes(8))
    MSG_FASTOPEN = 0x20000000
    attempt("fast open", lambda: called(44, 206, 3, b"x", 1, MSG_FASTOPEN, ctypes.addressof(address), 16))
    attempt("sendto an address", lambda: called(44, 206, 3, b"x", 1, 0, ctypes.addressof(address), 16))
    attempt("send fds", received)
    attempt("connect fd 3", lambda: called(42, 203, 3, ctypes.addressof(address), 16))
    attempt("listen on fd 3", lambda: called(50, 201, 3, 1))
    attempt("io_uring", lambda: called(425, 425, 8, ctypes.addressof(ctypes.create_string_buffer(256))))
    attempt("socketcall of i386", lambda: called(102 + 0x40000000, 9999, 1, 0))
    attempt("bpf", lambda: called(321, 280, 0, 0, 0))
    tell()
"""

# Signal 0 does nothing but ask for permission; SIGCONT harms nobody.
PROCESSES = """
TRIES
import resource, signal

def top_k_filter(logits, k):
    own = os.getpid()
    parents = sorted({os.getppid(), 1, *range(max(2, own - 30), own), *range(own + 1, own + 30)})
    for number in (0, signal.SIGCONT):
        attempt(f"kill -1 {number}", os.kill, -1, number)
        attempt(f"kill 0 {number}", os.kill, 0, number)
        for pid in parents:
            attempt(f"kill {pid} {number}", os.kill, pid, number)
            attempt(f"killpg {pid} {number}", os.killpg, pid, number)
            attempt(f"tgkill {pid}", lambda: called(234, 131, pid, pid, number))
            attempt(f"tkill {pid}", lambda: called(200, 130, pid, number))
    buffer = ctypes.create_string_buffer(128)
    pair = (ctypes.c_uint64 * 2)(ctypes.addressof(buffer), 8)
    remote = (ctypes.c_uint64 * 2)(0x400000, 8)
    for pid in parents:
        attempt(f"pidfd {pid}", lambda: called(434, 434, pid, 0))
        attempt(f"sigqueue {pid}", lambda: called(129, 138, pid, 0, ctypes.addressof(buffer)))
        for request in (16, 0x4206):
            attempt(f"ptrace {pid}", lambda: called(101, 117, request, pid, 0, 0))
        attempt(f"readv {pid}", lambda: called(310, 270, pid, ctypes.addressof(pair), 1,
            ctypes.addressof(remote), 1, 0))
        attempt(f"writev {pid}", lambda: called(311, 271, pid, ctypes.addressof(pair), 1,
            ctypes.addressof(remote), 1, 0))
        attempt(f"mem {pid}", lambda: open(f"/proc/{pid}/mem", "r+b"))
        attempt(f"prlimit {pid}", lambda: resource.prlimit(pid, resource.RLIMIT_CPU))
        attempt(f"affinity {pid}", lambda: os.sched_setaffinity(pid, {0}))
        attempt(f"priority {pid}", lambda: os.setpriority(os.PRIO_PROCESS, pid, 19))
        attempt(f"scheduler {pid}", lambda: os.sched_setscheduler(pid, 0, os.sched_param(0)))
        attempt(f"oom {pid}", lambda: open(f"/proc/{pid}/oom_score_adj", "w").write("1000"))
    import fcntl
    for fd in (0, 1, 2, 3):
        attempt("F_SETOWN", lambda: fcntl.fcntl(fd, fcntl.F_SETOWN, os.getppid()))
        attempt("F_SETSIG", lambda: fcntl.fcntl(fd, fcntl.F_SETSIG, 9))
    attempt("ptrace me", lambda: called(101, 117, 0, 0, 0, 0))
    attempt("all of a user", lambda: os.setpriority(os.PRIO_USER, os.getuid(), 19))
    attempt("a terminal", lambda: fcntl.ioctl(0, 0x5412, b"x"))
    for name in ("setuid", "setgid", "seteuid", "setegid"):
        attempt(name, getattr(os, name), 0)
    attempt("setgroups", os.setgroups, [0])
    for flag in (0x10000000, 0x20000000, 0x40000000, 0x20000, 0x04000000):
        attempt(f"unshare {flag:x}", lambda: refused(libc.unshare(flag)))
    attempt("mount", lambda: refused(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)))
    attempt("chroot", os.chroot, ".")
    attempt("keyctl", lambda: called(250, 219, 0, -3, 0, 0, 0))
    attempt("dumpable", lambda: refused(libc.prctl(4, 1, 0, 0, 0)))
    attempt("subreaper", lambda: refused(libc.prctl(36, 1, 0, 0, 0)))
    attempt("death signal", lambda: refused(libc.prctl(1, 0, 0, 0, 0)))
    attempt("more memory", lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)))
    attempt("more files", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1)))
    tell()
"""

ATTACKS = [
    by_code("18-hidden-tests", (18,), {"01.top_k": HIDDEN_TESTS}, zero={"01.top_k": HELD}),
    by_code("19-inside", (19,), {"01.top_k": INSIDE}, zero={"01.top_k": HELD}),
    by_code("20-gradebook", (20,), {"01.top_k": GRADEBOOK}, zero={"01.top_k": HELD}),
    by_code("21-others", (21,), {"01.top_k": OTHERS}, zero={"01.top_k": HELD}),
    by_code("22-network", (22,), {"01.top_k": NETWORK}, zero={"01.top_k": HELD}),
    by_code("23-processes", (23,), {"01.top_k": PROCESSES}, zero={"01.top_k": HELD}),
]
