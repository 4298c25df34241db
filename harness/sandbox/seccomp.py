"""The system calls that Python test code never needs, refused by a seccomp filter (libseccomp)."""

import contextlib
import errno
import functools
import signal
import tempfile

from .verdict import MissingPackage

# Refused with EPERM, as by a kernel that does not permit them: what reaches beyond the process, what holds memory that no limit counts
# (System V, memfd, message queues, larger socket buffers), what makes the machine write (sync), and what uses up numbers that the whole
# machine shares (inotify, asynchronous I/O). Not in the list, and so permitted: whatever files, memory, processes, threads, pipes, clocks
# (to read) and signals need; what those reach the namespaces bound.
_REFUSED = (
    "acct add_key adjtimex bpf chroot clock_adjtime clock_settime create_module delete_module fanotify_init finit_module "
    "flock fsconfig fsmount fsopen fspick get_kernel_syms get_mempolicy init_module inotify_init inotify_init1 io_cancel "
    "io_destroy io_getevents io_pgetevents io_setup io_submit io_uring_enter io_uring_register io_uring_setup ioperm iopl "
    "kcmp kexec_file_load kexec_load keyctl landlock_create_ruleset listmount lookup_dcookie mbind memfd_create memfd_secret "
    "migrate_pages modify_ldt mount mount_setattr move_mount move_pages mq_open mq_unlink msgctl msgget msgrcv msgsnd "
    "name_to_handle_at nfsservctl open_by_handle_at open_tree open_tree_attr perf_event_open personality pidfd_getfd "
    "pivot_root process_madvise process_vm_readv process_vm_writev ptrace query_module quotactl quotactl_fd reboot "
    "request_key seccomp semctl semget semop semtimedop set_mempolicy setdomainname sethostname setns setsockopt settimeofday shmat "
    "shmctl shmdt shmget socket statmount stime swapoff swapon sync syncfs syslog umount umount2 unshare uselib userfaultfd ustat vhangup "
    "vmsplice"
)
_MAP_SHARED = 1
_AF_UNIX = 1
_INT = 0xFFFFFFFF  # what the kernel takes of a number's 64 bits
_NEW_NAMESPACES = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)  # CLONE_NEW*


@functools.cache
def filter_program() -> bytes:
    """The filter as BPF instructions of this machine's architecture.

    Raises:
        MissingPackage: There is no libseccomp.
    """
    try:
        import pyseccomp
    except (ImportError, RuntimeError, OSError) as error:
        raise MissingPackage(
            f"The sandbox for generated code needs libseccomp, which cannot be loaded ({error}): `apt-get install libseccomp2`, "
            "or set T2_SANDBOX=process to run generated code with resource limits only, where that is acceptable."
        ) from None
    refuse = pyseccomp.ERRNO(errno.EPERM)
    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    for name in _REFUSED.split():
        try:
            rules.add_rule(refuse, name)
        except OSError:  # no such call on this architecture, or newer than this libseccomp
            continue
    for flag in _NEW_NAMESPACES:
        rules.add_rule(refuse, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, flag, flag))
    for name in ("mmap", "mmap2"):  # shared pages that nobody has mapped any more are in no process's resident size
        with contextlib.suppress(OSError):
            rules.add_rule(refuse, name, pyseccomp.Arg(3, pyseccomp.MASKED_EQ, _MAP_SHARED, _MAP_SHARED))
    rules.add_rule(refuse, "socketpair", pyseccomp.Arg(0, pyseccomp.NE, _AF_UNIX))
    # Of children that end while SIGCHLD is ignored nobody learns the CPU time.
    ignore = pyseccomp.Arg(0, pyseccomp.MASKED_EQ, _INT, signal.SIGCHLD), pyseccomp.Arg(1, pyseccomp.NE, 0)
    rules.add_rule(refuse, "rt_sigaction", *ignore)
    rules.add_rule(refuse, "prlimit64", pyseccomp.Arg(0, pyseccomp.NE, 0))  # of other processes
    # Its flags lie in memory, which a filter cannot read; C libraries take `clone` where there is no `clone3`.
    rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()
