"""What a process can give up for good: resource limits, files (Landlock), system calls (seccomp), its user.

Plain system calls through ctypes, since a process that does this should load as little as possible.
"""

import ctypes
import math
import os
import platform
import resource
import struct

MACHINE = "x86_64"
"""The only architecture whose system calls are listed here."""
SCRATCH_FILE_BYTES = 2**20
OPEN_FILES = 32
STACK_BYTES = 100 * 2**20
"""The kernel keeps 128 MiB free below the stack of a process, whatever the limit that it started with."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_GET_SECCOMP, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 21, 22, 38
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446

# What a Python process that neither forks nor connects needs: memory, clocks, its own signals' handlers, opening files
# (which Landlock or the mounts bound). Left out: processes, signals, sockets, links, directories, modes, namespaces,
# tracing, and calls that reveal files without opening them (stat, access, readlink; Python's `open` needs none).
_ALLOWED = {
    "read": 0, "write": 1, "close": 3, "fstat": 5, "poll": 7, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11,
    "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17, "pwrite64": 18,
    "readv": 19, "writev": 20, "select": 23, "sched_yield": 24, "mremap": 25, "madvise": 28, "dup": 32,
    "nanosleep": 35, "getpid": 39, "exit": 60, "ftruncate": 77, "getcwd": 79,
    "gettimeofday": 96, "getrusage": 98, "times": 100, "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108,
    "sigaltstack": 131, "gettid": 186, "time": 201, "futex": 202, "restart_syscall": 219,
    "exit_group": 231, "pselect6": 270, "ppoll": 271, "set_robust_list": 273, "getrandom": 318,
    "rseq": 334,
}  # fmt: skip
_FILES = {"rename": 82, "unlink": 87, "unlinkat": 263}
"""Allowed, like opening, where no path leads out of the scratch directory: an error would tell whether it exists."""
# Allowed with some arguments only; see `_filter`.
_FCNTL, _OPEN, _OPENAT, _CLOCKS, _PRLIMIT64 = 72, 2, 257, (228, 229, 230), 302
_FCNTL_COMMANDS = (1, 2, 3, 1030)
"""F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC: not F_SETOWN, which has the kernel send signals to others."""
_O_PATH = 0o10000000
_FIRST_CLOCK_OF_OTHERS = 16
"""The ids from here on, negative ones too, are clocks of other processes and of devices."""


def supports_seccomp() -> bool:
    return platform.machine() == MACHINE and _libc.prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) >= 0


def landlock_abi() -> int:
    """The kernel's Landlock version, 0 where there is none."""
    return max(0, _libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1))


def stay_in(directory: str) -> bool:
    """Makes a directory the root of all paths, for good; whether that is possible.

    Root may; another user may in a user namespace of its own, where the kernel grants one.
    """
    new_user, capset = 0x10000000, 126
    root = os.geteuid() == 0
    if not root and _libc.unshare(new_user):
        return False
    try:
        os.chroot(directory)
        os.chdir("/")
    except PermissionError:
        return False
    finally:
        if not root:
            # The namespace came with every capability.
            _syscall(capset, struct.pack("=Ii", 0x20080522, 0), bytes(24))
    return True


def drop_user(user: int) -> None:
    """Becomes another user for good; that user's other processes may not inspect this one. Raises OSError."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def hide_from_others() -> None:
    """No process of the same user may trace this one or its children, nor open their /proc files."""
    _prctl(_PR_SET_DUMPABLE, 0)


def end_with_parent(parent: int) -> None:
    """The kernel kills this process when its parent ends. Raises OSError where it has ended already."""
    _prctl(_PR_SET_PDEATHSIG, 9)
    if os.getppid() != parent:
        raise ProcessLookupError(parent)


def limit(cpu_seconds: float, memory_mb: int) -> None:
    seconds, memory = math.ceil(cpu_seconds), memory_mb * 2**20
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, seconds, seconds + 1),
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_FSIZE, SCRATCH_FILE_BYTES, SCRATCH_FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES),
        (resource.RLIMIT_NPROC, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
    ):
        resource.setrlimit(kind, (soft, hard))


def raise_stack_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    soft = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))


def forbid_new_privileges() -> None:
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def landlock(directory: str | None) -> None:
    """From now on no file but those in `directory` can be opened, no TCP port, no signal leaves. Raises OSError."""
    abi = landlock_abi()
    if not abi:
        raise OSError("this kernel has no Landlock")
    files = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    attributes = struct.pack("=QQQ", files, 3, 3)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = _syscall(_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if directory is not None:
        write, read, remove, make, truncate = 1 << 1, 1 << 2, 1 << 5, 1 << 8, 1 << 14
        parent = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        allowed = (write | read | remove | make | truncate) & files
        _syscall(_LANDLOCK_ADD_RULE, ruleset, 1, struct.pack("=Qi", allowed, parent), 0)
        os.close(parent)
    _syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def seccomp(*, files: bool) -> None:
    """From now on every system call but a few fails with EPERM; also opening files, unless `files`. Raises OSError."""
    instructions = _FILTERS[files]
    program = _Program(len(instructions) // 8, instructions)
    _prctl(_PR_SET_SECCOMP, 2, ctypes.byref(program))


def _filter(*, files: bool) -> bytes:
    """The instructions that the kernel runs at every system call, 8 bytes each."""
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    number, architecture = 0, 4
    first, second, third = 16, 24, 32
    """Offsets of the arguments: of the lower half of each, 4 bytes before its upper half."""
    allow, deny, kill = ((give, 0, 0, action) for action in (0x7FFF0000, 0x00050001, 0x80000000))
    # An instruction: what, how many to skip if true, how many if false, operand.
    code: list[tuple[int, int, int, int]] = [
        (load, 0, 0, architecture),
        (equal, 1, 0, 0xC000003E),  # AUDIT_ARCH_X86_64
        kill,
        (load, 0, 0, number),
        (at_least, 0, 1, 0x40000000),  # The x32 calls share the architecture.
        kill,
    ]
    for call in (*_ALLOWED.values(), *(_FILES.values() if files else ())):
        code += [(equal, 0, 1, call), allow]
    clock = [(load, 0, 0, first), (at_least, 0, 1, _FIRST_CLOCK_OF_OTHERS), deny, allow]
    guarded = dict.fromkeys(_CLOCKS, clock)
    for call, flags in ((_OPEN, second), (_OPENAT, third)) if files else ():
        # Landlock does not check opening with O_PATH, which reveals whether a file exists.
        guarded[call] = [(load, 0, 0, flags), (any_bit, 0, 1, _O_PATH), deny, allow]
    commands = [part for command in _FCNTL_COMMANDS for part in ((equal, 0, 1, command), allow)]
    guarded[_FCNTL] = [(load, 0, 0, second), *commands, deny]
    # Limits may be read, of this process only: no process id, no new value.
    halves = (first, first + 4, third, third + 4)
    zeros = [part for half in halves for part in ((load, 0, 0, half), (equal, 1, 0, 0), deny)]
    guarded[_PRLIMIT64] = [*zeros, allow]
    for call, rest in guarded.items():
        code += [(equal, 0, len(rest), call), *rest]
    code.append(deny)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


_FILTERS = {files: _filter(files=files) for files in (False, True)}
"""Made once: a zygote confines two processes for each job."""


def _prctl(option: int, *arguments: object) -> None:
    if _libc.prctl(option, *arguments, *[0] * (4 - len(arguments))):
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _syscall(number: int, *arguments: object) -> int:
    result = _libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}")
    return result
