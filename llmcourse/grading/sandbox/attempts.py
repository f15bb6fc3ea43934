"""What a student's code must not be able to do, each as a function that really tries it.

They are made so that a hole does no harm: signals are number 0, which only asks whether one could be
sent; a call that needs arguments gets nonsense. The kernel asks "may you?" before it looks at them, so
any answer but a refusal shows that the call went through.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass

from llmcourse.grading.sandbox import kernel
from llmcourse.grading.sandbox.policy import HIDDEN, PACKAGE, Policy
from llmcourse.grading.sandbox.syscalls import ALLOWED, REFUSED

REFUSALS = (errno.EPERM, errno.EACCES)
# Also a refusal where a namespace shows nothing, or shows it read-only.
HIDES = (*REFUSALS, errno.ENOENT, errno.EROFS)
F_SETOWN, TIOCSTI = 8, 0x5412
PTRACE_SEIZE, CLONE_NEWUSER = 0x4206, 0x10000000


class Hole(Exception):
    """Something went through."""


@dataclass(frozen=True)
class Situation:
    """What a trial is given to attack.

    Args:
        parent: the process that forked this one.
        home: of the user who grades.
        other: a file beside the scratch folder that every user may read and write.
        book: a file that the policy lets be read, and that every user may write.
        secret_fd: a file descriptor that the parent had open.
    """

    policy: Policy
    parent: int
    home: str
    other: str
    book: str
    secret_fd: int


Attempt = Callable[[Situation], str]


def refused(action: Callable[[], object], refusals: tuple[int, ...] = REFUSALS) -> str:
    """The name of the error with which the kernel refused.

    Raises:
        Hole: it did not.
    """
    try:
        action()
    except OSError as error:
        if error.errno in refusals:
            return errno.errorcode[error.errno]
        raise Hole(f"not refused, but {error.strerror}") from None
    raise Hole("it works")


def all_refused(actions: dict[str, Callable[[], object]], refusals: tuple[int, ...] = REFUSALS) -> str:
    """Every action must be refused; the text lists what was tried.

    Raises:
        Hole: with the names of those that went through.
    """
    holes = []
    for name, action in actions.items():
        try:
            refused(action, refusals)
        except Hole as hole:
            holes.append(f"{name}: {hole}")
    if holes:
        raise Hole("; ".join(holes))
    return ", ".join(actions)


def calls(**arguments: tuple[object, ...]) -> Attempt:
    """Tries system calls by their names, those that this machine has, with these arguments."""

    def attempt(situation: Situation) -> str:
        machine = kernel.machine() or ""
        numbers = ALLOWED[machine] | REFUSED[machine]
        return all_refused(
            {
                name: lambda name=name, given=given: kernel.syscall(numbers[name], *given)
                for name, given in arguments.items()
                if name in numbers
            }
        )

    return attempt


def families(**sockets: tuple[str, int]) -> Attempt:
    """Tries to make sockets: a family by its name in `socket`, and a type."""

    def attempt(situation: Situation) -> str:
        known = {name: given for name, given in sockets.items() if hasattr(socket, given[0])}
        return all_refused(
            {
                name: lambda family=family, kind=kind: socket.socket(getattr(socket, family), kind)
                for name, (family, kind) in known.items()
            }
        )

    return attempt


def read_home(situation: Situation) -> str:
    return refused(lambda: os.listdir(situation.home), HIDES)


def read_other(situation: Situation) -> str:
    return refused(lambda: open(situation.other).close())


def list_above(situation: Situation) -> str:
    return refused(lambda: os.listdir(os.path.dirname(situation.policy.scratch)))


def read_grader(situation: Situation) -> str:
    files = [hidden / "__init__.py" for hidden in HIDDEN] + [PACKAGE / "grading" / "sandbox" / "attempts.py"]
    return all_refused({str(f.relative_to(PACKAGE)): lambda f=f: f.open().close() for f in files}, HIDES)


def read_system(situation: Situation) -> str:
    files = ("/etc/passwd", "/etc/hostname", "/proc/1/environ", "/sys/kernel/notes")
    return all_refused({f: lambda f=f: open(f).close() for f in files if os.path.exists(f)})


def write_package(situation: Situation) -> str:
    # An existing file is opened and nothing written.
    return all_refused(
        {
            "change": lambda: open(PACKAGE / "__init__.py", "r+").close(),
            "add": lambda: os.close(os.open(PACKAGE, os.O_TMPFILE | os.O_WRONLY)),
        },
        HIDES,
    )


def write_elsewhere(situation: Situation) -> str:
    folders = ("/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", situation.home)
    return all_refused(
        {f: lambda f=f: os.close(os.open(f, os.O_TMPFILE | os.O_WRONLY)) for f in folders},
        HIDES,
    )


def change_other(situation: Situation) -> str:
    other = situation.other
    return all_refused(
        {
            "write": lambda: open(other, "a").close(),
            "truncate": lambda: os.truncate(other, 1),
            "mode": lambda: os.chmod(other, 0o666),
            "owner": lambda: os.chown(other, -1, -1),
            "time": lambda: os.utime(other, (1, 1)),
            "hard link": lambda: os.link(other, "link"),
            "symbolic link": lambda: os.symlink(other, "link"),
            "rename": lambda: os.rename(other, "moved"),
            "unlink": lambda: os.unlink(other),
        }
    )


def change_readable(situation: Situation) -> str:
    """What may be read is open to the calls that landlock, or an old version of it, does not know."""
    book = situation.book
    with open(book) as opened:
        return all_refused(
            {
                "truncate while reading": lambda: os.close(os.open(book, os.O_RDONLY | os.O_TRUNC)),
                "mode": lambda: os.fchmod(opened.fileno(), 0o666),
                "attribute": lambda: os.setxattr(book, "user.mark", b"1"),
                "watch": lambda: _call("inotify_init1", 0),
            }
        )


def read_parent(situation: Situation) -> str:
    names = ("mem", "environ", "maps", "cmdline", "status", "fd", "root", "task")
    paths = {name: f"/proc/{situation.parent}/{name}" for name in names}
    actions = {name: lambda path=path: os.close(os.open(path, os.O_RDONLY)) for name, path in paths.items()}
    actions["link to its folder"] = lambda: os.readlink(f"/proc/{situation.parent}/cwd")
    return all_refused(actions, HIDES)


def trace_parent(situation: Situation) -> str:
    parent, me = situation.parent, os.getpid()
    return all_refused(
        {
            "ptrace": lambda: _call("ptrace", PTRACE_SEIZE, parent, 0, 0),
            "process_vm_readv": lambda: _call("process_vm_readv", parent, None, 0, None, 0, 0),
            "process_vm_writev": lambda: _call("process_vm_writev", parent, None, 0, None, 0, 0),
            "kcmp": lambda: _call("kcmp", parent, me, 0, 0, 0),
            "pidfd_open": lambda: _call("pidfd_open", parent, 0),
            "pidfd_getfd": lambda: _call("pidfd_getfd", -1, 0, 0),
        }
    )


def signal_parent(situation: Situation) -> str:
    parent = situation.parent
    return all_refused(
        {
            "kill": lambda: os.kill(parent, 0),
            "tkill": lambda: _call("tkill", parent, 0),
            "tgkill": lambda: _call("tgkill", parent, parent, 0),
            "rt_sigqueueinfo": lambda: _call("rt_sigqueueinfo", parent, 0, None),
            "pidfd_send_signal": lambda: _call("pidfd_send_signal", -1, 0, None, 0),
        }
    )


def signal_by_kernel(situation: Situation) -> str:
    """Makes the parent the one who is told, with a signal of choice, when a pipe has something to read."""
    reader, _ = os.pipe()
    return all_refused(
        {
            "F_SETOWN": lambda: fcntl.fcntl(reader, F_SETOWN, situation.parent),
            "F_SETSIG": lambda: fcntl.fcntl(reader, 10, signal.SIGKILL),
        }
    )


def signal_all(situation: Situation) -> str:
    return all_refused({"everybody": lambda: os.kill(-1, 0), "own group": lambda: os.kill(0, 0)})


def slow_parent(situation: Situation) -> str:
    parent = situation.parent
    return all_refused(
        {
            "limits": lambda: resource.prlimit(parent, resource.RLIMIT_CPU),
            "processors": lambda: os.sched_setaffinity(parent, os.sched_getaffinity(parent)),
            "priority": lambda: os.setpriority(os.PRIO_PROCESS, parent, os.getpriority(0, parent)),
            "everybody's priority": lambda: os.setpriority(os.PRIO_USER, 2**31 - 2, 0),
        }
    )


def start_process(situation: Situation) -> str:
    true = "/bin/true"
    return all_refused(
        {
            "fork": _fork,
            "clone": lambda: _call("clone", signal.SIGCHLD, 0, 0, 0, 0) or os._exit(0),
            "posix_spawn": lambda: os.posix_spawn(true, [true], {}),
            "execve": lambda: _call("execve", b"", None, None),
            "execveat": lambda: _call("execveat", -1, b"", None, None, 0),
        }
    )


def _fork() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def use_terminal(situation: Situation) -> str:
    with open(os.devnull) as null:
        return all_refused(
            {
                "terminal": lambda: open("/dev/tty").close(),
                "type into it": lambda: fcntl.ioctl(null, TIOCSTI, b"x"),
            },
            (*HIDES, errno.ENXIO),
        )


def other_numbers(situation: Situation) -> str:
    """System calls by the numbers of another machine, and by such as no kernel knows yet."""
    if kernel.machine() == "x86_64":
        refused(lambda: kernel.syscall(0x40000000 + 39), (*REFUSALS, errno.ENOSYS))
    return refused(lambda: kernel.syscall(437, -1, None, None, 0), (*REFUSALS, errno.ENOSYS))


def inherit_file(situation: Situation) -> str:
    return refused(lambda: os.fstat(situation.secret_fd), (errno.EBADF,))


def _call(name: str, *arguments: object) -> int:
    machine = kernel.machine() or ""
    return kernel.syscall((ALLOWED[machine] | REFUSED[machine])[name], *arguments)


ATTEMPTS: dict[str, Attempt] = {
    "read the home folder": read_home,
    "read a file beside its own": read_other,
    "list other submissions": list_above,
    "read the grader and the solutions": read_grader,
    "read the system's files": read_system,
    "change the course package": write_package,
    "write outside of its folder": write_elsewhere,
    "change a file beside its own": change_other,
    "change what it may read": change_readable,
    "read an inherited file": inherit_file,
    "read the parent in /proc": read_parent,
    "trace another process": trace_parent,
    "send its parent a signal": signal_parent,
    "have a signal sent": signal_by_kernel,
    "send everybody a signal": signal_all,
    "slow its parent": slow_parent,
    "start a process": start_process,
    "use the terminal": use_terminal,
    "TCP and UDP, version 4": families(tcp=("AF_INET", 1), udp=("AF_INET", 2), icmp=("AF_INET", 3)),
    "TCP and UDP, version 6": families(tcp=("AF_INET6", 1), udp=("AF_INET6", 2)),
    "sockets of this machine": families(
        unix=("AF_UNIX", 1), netlink=("AF_NETLINK", 3), vsock=("AF_VSOCK", 1), packet=("AF_PACKET", 3)
    ),
    "other sockets": families(alg=("AF_ALG", 5), can=("AF_CAN", 3), tipc=("AF_TIPC", 1)),
    "use a socket of its own": calls(
        socketpair=(1, 1, 0, 0), connect=(-1, 0, 0), bind=(-1, 0, 0), listen=(-1, 0), sendmsg=(-1, 0, 0)
    ),
    "run code from memory": calls(memfd_create=(0, 0), memfd_secret=(-1,)),
    "queue work in the kernel": calls(io_uring_setup=(0, None), io_setup=(0, None)),
    "make a namespace": calls(unshare=(CLONE_NEWUSER,), setns=(-1, 0)),
    "mount": calls(
        mount=(None, None, None, 0, None),
        umount2=(b"/nothing", 0),
        move_mount=(-1, b"", -1, b"", 0),
        open_tree=(-1, b"", 0),
        fsopen=(None, 0),
        mount_setattr=(-1, b"", 0, None, 0),
        chroot=(b"/nothing",),
        pivot_root=(b"/nothing", b"/nothing"),
    ),
    "become another user": calls(
        setuid=(-1,),
        setgid=(-1,),
        setreuid=(-1, -1),
        setresuid=(-1, -1, -1),
        setgroups=(0, None),
        capset=(0, 0),
    ),
    "use the kernel's keys": calls(keyctl=(0, -3, 0), add_key=(0, 0, 0, 0, 0), request_key=(0, 0, 0, 0)),
    "program the kernel": calls(bpf=(0, None, 0), seccomp=(-1, 0, None), landlock_create_ruleset=(0, 0, 1)),
    "measure the machine": calls(perf_event_open=(None, 0, -1, -1, 0), syslog=(10, 0, 0)),
    "handle page faults": calls(userfaultfd=(-1,), process_madvise=(-1, 0, 0, 0, 0)),
    "share memory": calls(
        shmget=(0, 0, 0),
        shmat=(-1, 0, 0),
        msgget=(0x7FFFFFF, 0),
        semget=(0x7FFFFFF, 0, 0),
        mq_open=(b"none", 0),
    ),
    "open files by number": calls(name_to_handle_at=(-1, b"", 0, 0, 0), open_by_handle_at=(-1, 0, 0)),
    "stop or change the system": calls(
        reboot=(0, 0, 0, 0),
        kexec_load=(0, 17, 0, 0),
        init_module=(None, 0, None),
        finit_module=(-1, None, 0),
        delete_module=(b"none", 0),
        swapon=(b"/nothing", 0),
        acct=(b"/nothing",),
        sethostname=(None, -1),
        settimeofday=(1, 0),
        clock_settime=(-1, 0),
        adjtimex=(0,),
        quotactl=(-1, 0, 0, 0),
    ),
    "change how it is run": calls(personality=(0xFFFFFFFF,), iopl=(0,), modify_ldt=(0, 0, 0)),
    "use other system calls": other_numbers,
}
