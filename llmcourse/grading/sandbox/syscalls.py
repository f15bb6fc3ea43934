"""The system calls that computing needs, and their numbers; whatever is not listed is refused.

An allow-list, because the list of what is dangerous grows with every kernel. Next to each name stands
its number on x86-64 and on aarch64 (`-`: it has none there), from the kernel's `unistd_64.h` and
`asm-generic/unistd.h`. Some of these are allowed for certain arguments only: see `seccomp.conditions`.
"""

from __future__ import annotations

from llmcourse.grading.sandbox.kernel import MACHINES

_ALLOWED = """
# Memory.
brk                      12  214
mmap                      9  222
munmap                   11  215
mremap                   25  216
mprotect                 10  226
madvise                  28  233
msync                    26  227
mincore                  27  232
membarrier              324  283
get_mempolicy           239  236

# Threads of this process, and waiting for one another.
clone                    56  220
futex                   202   98
futex_waitv             449  449
set_robust_list         273   99
get_robust_list         274  100
set_tid_address         218   96
rseq                    334  293
gettid                  186  178
sched_yield              24  124
getcpu                  309  168
sched_getaffinity       204  123
sched_setaffinity       203  122
sched_getparam          143  121
sched_getscheduler      145  120
sched_getattr           315  275
sched_get_priority_max  146  125
sched_get_priority_min  147  126
sched_rr_get_interval   148  127
arch_prctl              158    -
prctl                   157  167
exit                     60   93
exit_group              231   94

# Signals within this process.
rt_sigaction             13  134
rt_sigprocmask           14  135
rt_sigreturn             15  139
rt_sigpending           127  136
rt_sigsuspend           130  133
rt_sigtimedwait         128  137
sigaltstack             131  132
restart_syscall         219  128
pause                    34    -
kill                     62  129
tgkill                  234  131
rt_sigqueueinfo         129  138
rt_tgsigqueueinfo       297  240
signalfd4               289   74

# Time.
clock_gettime           228  113
clock_getres            229  114
clock_nanosleep         230  115
nanosleep                35  101
gettimeofday             96  169
time                    201    -
times                   100  153
alarm                    37    -
getitimer                36  102
setitimer                38  103
timer_create            222  107
timer_settime           223  110
timer_gettime           224  108
timer_getoverrun        225  109
timer_delete            226  111
timerfd_create          283   85
timerfd_settime         286   86
timerfd_gettime         287   87

# Files; landlock says which.
open                      2    -
openat                  257   56
creat                    85    -
close                     3   57
close_range             436  436
read                      0   63
write                     1   64
readv                    19   65
writev                   20   66
pread64                  17   67
pwrite64                 18   68
preadv                  295   69
pwritev                 296   70
preadv2                 327  286
pwritev2                328  287
lseek                     8   62
dup                      32   23
dup2                     33    -
dup3                    292   24
fcntl                    72   25
ioctl                    16   29
flock                    73   32
fsync                    74   82
fdatasync                75   83
ftruncate                77   46
fadvise64               221  223
readahead               187  213
sync_file_range         277   84
sendfile                 40   71
copy_file_range         326  285
umask                    95  166
stat                      4    -
fstat                     5   80
lstat                     6    -
newfstatat              262   79
statx                   332  291
access                   21    -
faccessat               269   48
faccessat2              439  439
readlink                 89    -
readlinkat              267   78
statfs                  137   43
fstatfs                 138   44
getdents                 78    -
getdents64              217   61
getcwd                   79   17
chdir                    80   49
fchdir                   81   50
mkdir                    83    -
mkdirat                 258   34
rmdir                    84    -
unlink                   87    -
unlinkat                263   35
rename                   82    -
renameat                264   38
renameat2               316  276

# Pipes, events, and the socket that the judge holds the other end of.
pipe                     22    -
pipe2                   293   59
eventfd                 284    -
eventfd2                290   19
poll                      7    -
ppoll                   271   73
select                   23    -
pselect6                270   72
epoll_create            213    -
epoll_create1           291   20
epoll_ctl               233   21
epoll_wait              232    -
epoll_pwait             281   22
epoll_pwait2            441  441
recvfrom                 45  207
sendto                   44  206
shutdown                 48  210
getsockname              51  204
getpeername              52  205
getsockopt               55  209

# What this process is, and what it has used.
getpid                   39  172
getppid                 110  173
getuid                  102  174
geteuid                 107  175
getgid                  104  176
getegid                 108  177
getresuid               118  148
getresgid               120  150
getgroups               115  158
getpgid                 121  155
getpgrp                 111    -
getsid                  124  156
getpriority             140  141
setpriority             141  140
getrlimit                97  163
setrlimit               160  164
prlimit64               302  261
getrusage                98  165
capget                  125   90
uname                    63  160
sysinfo                  99  179
getrandom               318  278
wait4                    61  260
waitid                  247   95
"""

# Refused like everything else; named so that `probes` can try them.
_REFUSED = """
socket                   41  198
socketpair               53  199
connect                  42  203
bind                     49  200
listen                   50  201
accept4                 288  242
sendmsg                  46  211
execve                   59  221
execveat                322  281
fork                     57    -
vfork                    58    -
clone3                  435  435
tkill                   200  130
pidfd_open              434  434
pidfd_send_signal       424  424
pidfd_getfd             438  438
ptrace                  101  117
process_vm_readv        310  270
process_vm_writev       311  271
process_madvise         440  440
kcmp                    312  272
memfd_create            319  279
memfd_secret            447  447
io_uring_setup          425  425
io_setup                206    0
bpf                     321  280
perf_event_open         298  241
userfaultfd             323  282
keyctl                  250  219
add_key                 248  217
request_key             249  218
mount                   165   40
umount2                 166   39
move_mount              429  429
open_tree               428  428
fsopen                  430  430
mount_setattr           442  442
unshare                 272   97
setns                   308  268
chroot                  161   51
pivot_root              155   41
setuid                  105  146
setgid                  106  144
setreuid                113  145
setresuid               117  147
setgroups               116  159
setfsuid                122  151
capset                  126   91
reboot                  169  142
kexec_load              246  104
init_module             175  105
finit_module            313  273
delete_module           176  106
swapon                  167  224
acct                    163   89
syslog                  103  116
sethostname             170  161
settimeofday            164  170
clock_settime           227  112
adjtimex                159  171
name_to_handle_at       303  264
open_by_handle_at       304  265
shmget                   29  194
shmat                    30  196
msgget                   68  186
semget                   64  190
mq_open                 240  180
personality             135   92
chmod                    90    -
fchmod                   91   52
fchmodat                268   53
chown                    92    -
fchown                   93   55
fchownat                260   54
utimensat               280   88
setxattr                188    5
truncate                 76   45
link                     86    -
linkat                  265   37
symlinkat               266   36
mknodat                 259   33
inotify_init1           294   26
fanotify_init           300  262
ioprio_set              251   30
sched_setscheduler      144  119
sched_setattr           314  274
landlock_create_ruleset  444  444
seccomp                 317  277
openat2                 437  437
quotactl                179   60
fallocate               285   47
iopl                    172    -
modify_ldt              154    -
"""

# Refused as if the kernel had never heard of them, so that libraries fall back to an older call: the
# arguments of these two lie in memory, where a filter cannot look.
FALL_BACK = {"clone3": 435, "openat2": 437}  # on both machines
# Refused as by a file system that cannot do it, so that libraries write instead. It takes any amount of a
# disk at once, faster than anybody can watch, and past a file's end also more than a file may have.
UNSUPPORTED = "fallocate"
FIRST_UNKNOWN = 451  # and so is all that came after this table, with Linux 6.5


def _parse(table: str) -> dict[str, dict[str, int]]:
    numbers: dict[str, dict[str, int]] = {machine: {} for machine in MACHINES}
    for line in table.splitlines():
        if line and not line.startswith("#"):
            name, *columns = line.split()
            for machine, column in zip(MACHINES, columns, strict=True):
                if column != "-":
                    numbers[machine][name] = int(column)
    return numbers


ALLOWED = _parse(_ALLOWED)
REFUSED = _parse(_REFUSED)
