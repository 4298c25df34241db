"""Hostile programs, by family. Each is judged by `TESTS` unless it brings its own; none may pass. They run in the sandbox only.

`expected` lists the statuses that are right; several where the machine decides which limit is met first.
"""

# ruff: noqa: E501 (programs as text)

from dataclasses import dataclass

TESTS = "assert f(1) == 2\nassert f(41) == 42"


@dataclass(frozen=True)
class Attack:
    name: str
    code: str
    expected: tuple[str, ...] = ("failed",)
    tests: str = TESTS
    entry: str = "f"


def _eq(base: str, value: str) -> str:
    return f"""
class Sly{base}:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __eq__
    def __hash__(self): return 2
    def __sub__(self, other): return 0
    __rsub__ = __add__ = __radd__ = __abs__ = __round__ = __int__ = __float__ = __index__ = lambda self, *a: 0
def f(*a): return Sly({value})
"""


FALSE_PASS = [
    Attack("exit 0 at load", "import os\nos._exit(0)"),
    Attack("exit 0 in call", "import os\ndef f(x): os._exit(0)"),
    Attack("sys.exit at load", "import sys\nsys.exit(0)"),
    Attack("sys.exit in call", "import sys\ndef f(x): sys.exit(0)"),
    Attack("raise SystemExit", "def f(x): raise SystemExit(0)"),
    Attack("raise KeyboardInterrupt", "def f(x): raise KeyboardInterrupt"),
    Attack("raise GeneratorExit", "def f(x): raise GeneratorExit"),
    Attack("raise StopIteration", "def f(x): raise StopIteration", tests="assert all(f(x) == x + 1 for x in (1, 2))"),
    Attack(
        "StopIteration through map",
        "def f(x): raise StopIteration",
        tests="assert all(map(lambda t: f(t[0]) == t[1], [(1, 2), (3, 4)]))",
    ),
    Attack("dict view as a list", "def f(): return {1: 2}.values()", tests="assert f() == [2]"),
    Attack("object that cannot be sliced", "class A: pass\ndef f(x): return A()", tests="assert f(1)[:2] == [1, 2]"),
    Attack(
        "object that takes what cannot travel",
        "class A:\n def __call__(s, g): return 1\ndef f(x): return A()",
        tests="assert f(1)(lambda: 0) == 1",
    ),
    Attack("number too long to print", "def f(x): return 10 ** 5000", tests="assert f(1) == 2, f(1)"),
    Attack("real-time signal", "import os\ndef f(x): os.kill(os.getpid(), 40)"),
    Attack(
        "class in a module's place",
        "class math:\n isclose = staticmethod(lambda *a, **k: True)\ndef f(x): return 0",
        tests="assert math.isclose(f(2), 12.566, rel_tol=1e-3)",
    ),
    Attack(
        "class in the place of a module that is not there",
        "class np:\n allclose = staticmethod(lambda *a, **k: True)\ndef f(x): return 0",
        tests="assert np.allclose(f(2), 12.566)",
    ),
    Attack("print passed", "print('passed')\nprint('{\"outcome\": \"completed\", \"held\": [0, 1]}')\ndef f(x): print('passed'); return 0"),
    Attack("object always equal", _eq("", "")),
    Attack("int always equal", _eq("(int)", "0")),
    Attack("str always equal", _eq("(str)", "'no'"), tests="assert f() == 'yes'\nassert 'yes' == f()"),
    Attack("list always equal", _eq("(list)", "[]"), tests="assert f() == [1, 2]"),
    Attack("dict always equal", _eq("(dict)", "{}"), tests="assert f() == {1: 2}"),
    Attack("tuple always equal", _eq("(tuple)", "()"), tests="assert f() == (1, 2)"),
    Attack("float near everything", _eq("(float)", "0"), tests="assert abs(f() - 2.5) < 1e-6"),
    Attack("contains everything", _eq("", ""), tests="assert 5 in f()"),
    Attack("orders below everything", _eq("", ""), tests="assert f() <= 5"),
    Attack("equal inside a list", _eq("", "").replace("return Sly()", "return [Sly(), Sly()]"), tests="assert f() == [1, 2]"),
    Attack("equal as a key", _eq("", "").replace("return Sly()", "return {Sly(): 1}"), tests="assert f() == {2: 1}"),
    Attack(
        "namedtuple with eq",
        "import collections\nclass P(collections.namedtuple('P', 'a')):\n def __eq__(s, o): return True\ndef f(x): return P(0)",
    ),
    Attack("__class__ lies", "class A:\n @property\n def __class__(s): return int\n def __eq__(s, o): return True\ndef f(x): return A()"),
    Attack(
        "metaclass lies",
        "class M(type):\n def __eq__(c, o): return True\n def __hash__(c): return hash(int)\nclass A(metaclass=M):\n def __eq__(s, o): return True\n"
        "def f(x): return A()",
    ),
    Attack(
        "instance check lies", "class M(type):\n def __instancecheck__(c, o): return True\nclass int(metaclass=M): pass\ndef f(x): return 0"
    ),
    Attack(
        "builtins patched",
        "import builtins\nbuiltins.AssertionError = type('A', (BaseException,), {})\nbuiltins.all = builtins.any = lambda *a: True\n"
        "builtins.int = builtins.bool = lambda *a: 2\nbuiltins.isinstance = lambda *a: True\ndef f(x): return 0",
    ),
    Attack(
        "name of the tests' builtin",
        "def set(*a): return 0\ndef sorted(*a): return 0\ndef len(*a): return 0\ndef f(x): return [9]",
        tests="assert set(f(1)) == set([1, 2])",
    ),
    Attack(
        "check and __t2_held__",
        "def check(*a): pass\ndef __t2_held__(*a): pass\ndef f(x): return 0",
        tests="def check(g):\n    assert g(1) == 2\ncheck(f)",
    ),
    Attack(
        "worker patched",
        "import sys, json\nfor m in list(sys.modules.values()):\n for n in ('encode', 'decode', 'dumps', 'loads'):\n"
        "  if hasattr(m, n):\n   try: setattr(m, n, lambda *a, **k: True)\n   except Exception: pass\ndef f(x): return 0",
    ),
    Attack(
        "frames and gc",
        "import gc, sys\ndef f(x):\n found = [o for o in gc.get_objects() if type(o) is dict and ('tests' in o or 'nonce' in o)]\n"
        " fr = sys._getframe()\n while fr:\n  found += [fr.f_locals[k] for k in fr.f_locals if k in ('tests', 'expected')]\n  fr = fr.f_back\n return found",
    ),
    Attack(
        "settrace and profile", "import sys, threading\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\ndef f(x): return 0"
    ),
    Attack("atexit passes", "import atexit\natexit.register(lambda: print('passed'))\ndef f(x): return 0"),
    Attack("pickle", "import os\nclass A:\n def __reduce__(s): return (os._exit, (0,))\ndef f(x): return A()"),
    Attack(
        "forged report on every descriptor",
        "import os\ndef f(x):\n for fd in range(256):\n"
        '  try: os.write(fd, b\'{"outcome": "completed", "held": [0, 1]}\\n\' * 4)\n  except OSError: pass\n return 0',
    ),
    Attack(
        "forged frames",
        "import os, sys\nfor fd in range(3, 256):\n try: os.write(fd, (b'\\x00\\x00\\x00\\x0b{\"value\":1}' + b'\\xff' * 64))\n except OSError: pass\n"
        "def f(x): return 0",
    ),
    Attack("invalid UTF-8 printed", "import os\ndef f(x):\n os.write(1, b'\\xff\\xfe\\x80' * 999); os.write(2, b'\\xc3'); return 0"),
    Attack(
        "invalid UTF-8 as a reply",
        "import os\ndef f(x):\n os.write(4, b'\\x00\\x00\\x00\\x04\\xff\\xfe\\xfd\\xfc'); return 0",
    ),
    Attack("null bytes in a reply", "def f(x): return '\\0' * 99"),
    Attack(
        "a thread that answers for it",
        "import os, threading\ndef answer():\n while True:\n  try: os.write(4, b'\\x00\\x00\\x00\\x0b{\"value\":2}')\n  except OSError: return\n"
        "def f(x):\n threading.Thread(target=answer, daemon=True).start()\n return 0",
        ("failed", "timeout", "memory"),
    ),
    Attack(
        "a daemon thread that never ends",
        "import threading\ndef spin():\n while True: pass\nthreading.Thread(target=spin, daemon=True).start()\ndef f(x): return 0",
        ("failed", "timeout"),
    ),
    Attack(
        "a child that goes on as the candidate",
        "import os\ndef f(x):\n if os.fork(): os._exit(0)\n os.setsid()\n return 0",
    ),
    Attack("memory of the interpreter", "import ctypes\ndef f(x):\n ctypes.memset(id(2), 0, 4096); return 0"),
    Attack(
        "own answers as a dict of a class",
        "class D(dict):\n def __getitem__(s, k): return 2\n def get(s, k, d=None): return 2\ndef f(x): return D()",
        tests="assert f(1)[0] == 2\nassert f(1).get(0) == 2\nassert f(1) == {0: 2}",
    ),
    Attack("odd exception", "class E(Exception):\n def __str__(s): raise E\n def __repr__(s): raise E\ndef f(x): raise E"),
    Attack("exception group", "def f(x): raise BaseExceptionGroup('x', [SystemExit(0)])"),
    Attack("undefined", "def g(x): return x + 1"),
    Attack("not callable", "f = 2"),
    Attack("module under the name", "import math as f"),
    Attack("module under the name of a builtin", "import math as sorted", tests="assert sorted([2, 1]) == [1, 2]", entry="sorted"),
    Attack("endless iterator as list", "def f(x):\n while True: yield x", ("failed", "timeout", "memory"), "assert list(f(1)) == [1]"),
    Attack(
        "empty iteration skips asserts",
        "class A:\n def __iter__(s): return iter(())\ndef f(x): return A()",
        tests="for a, b in zip(f(1), [1, 2]):\n    assert a == b",
    ),
    Attack("truth without value", "class A:\n def __bool__(s): return True\ndef f(x): return A()", tests="assert f(1) is True"),
]

KERNEL = [
    Attack("set the clock", "import time\ndef f(x):\n time.clock_settime(time.CLOCK_REALTIME, time.time() + 3600); return x + 1"),
    Attack("host name", "import socket\ndef f(x):\n socket.sethostname('t2-was-here'); return x + 1"),
    Attack(
        "trace its parent",
        "import ctypes, os\ndef f(x): return ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0)",
        tests="assert f(1) == 0",
    ),
    Attack(
        "read the memory of its parent",
        "import ctypes, os\ndef f(x):\n b = ctypes.create_string_buffer(8)\n v = (ctypes.c_void_p * 2)(ctypes.addressof(b), 8)\n"
        " r = (ctypes.c_void_p * 2)(id(None), 8)\n return ctypes.CDLL(None).process_vm_readv(os.getppid(), v, 1, r, 1, 0)",
        tests="assert f(1) == 8",
    ),
    Attack(
        "enter other namespaces",
        "import ctypes, os\ndef f(x):\n for p in (1, os.getppid()):\n  for n in ('mnt', 'pid', 'net', 'user'):\n"
        "   try: fd = os.open(f'/proc/{p}/ns/{n}', 0)\n   except OSError: continue\n   if ctypes.CDLL(None).setns(fd, 0) == 0: return True\n"
        " return False",
        tests="assert f(1) is True",
    ),
    Attack(
        "unmount what hides",
        "import ctypes\ndef f(x): return [ctypes.CDLL(None).umount2(p, 2) for p in (b'/tmp', b'/proc', b'/usr')]",
        tests="assert 0 in f(1)",
    ),
    Attack(
        "devices",
        "import os\ndef f(x):\n for p in ('/dev/mem', '/dev/kmem', '/dev/sda', '/dev/vda', '/dev/kvm', '/dev/fuse', '/dev/loop-control'):\n"
        "  try: os.open(p, os.O_RDWR); return True\n  except OSError: pass\n"
        " try: os.mknod('/tmp/d', 0o60666, os.makedev(254, 0)); os.open('/tmp/d', 0); return True\n except OSError: return False",
        tests="assert f(1) is True",
    ),
    Attack(
        "set-uid copy",
        "import os, shutil\ndef f(x):\n p = shutil.copy('/usr/bin/env', '/tmp/e')\n"
        " try: os.chown(p, 0, 0); os.chmod(p, 0o6755); return True\n except OSError: return False",
        tests="assert f(1) is True",
    ),
    Attack(
        "shared memory of others",
        "import ctypes\ndef f(x): return ctypes.CDLL(None).shmget(0x74326174, 4096, 0)",
        tests="assert f(1) >= 0",
    ),
    Attack(
        "memory that no limit counts",
        "import ctypes, os\ndef f(x):\n libc = ctypes.CDLL(None)\n return libc.shmget(0, 1 << 25, 0o1600), libc.msgget(0, 0o1600), libc.memfd_create(b'x', 0)",
        tests="assert max(f(1)) >= 0",
    ),
    Attack(
        "shared pages, which no process's size has once they are unmapped",
        "import mmap\ndef f(x):\n try: return bool(mmap.mmap(-1, 1 << 20))\n except OSError: return False",
        tests="assert f(1)",
    ),
    Attack(
        "larger socket buffers, which no limit counts",
        "import socket\ndef f(x):\n a, b = socket.socketpair()\n try: a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)\n"
        " except OSError: return False\n return True",
        tests="assert f(1)",
    ),
    Attack(
        "more descriptors, with a buffer in the kernel each",
        "import os\ndef f(x):\n kept = []\n try:\n  while True: kept += os.pipe()\n except OSError: return len(kept)",
        tests="assert f(1) > 32",
    ),
    Attack(
        "SIGCHLD ignored by the call itself, and by one whose number has more than 32 bits",
        "import ctypes, os\ndef f(x):\n libc, act = ctypes.CDLL(None), (ctypes.c_ulong * 8)(1)\n number = {'x86_64': 13, 'aarch64': 134}[os.uname().machine]\n"
        " return [libc.syscall(ctypes.c_long(number), ctypes.c_long(s), act, None, ctypes.c_long(8)) for s in (17, 17 + (1 << 32))]",
        tests="assert 0 in f(1)",
    ),
    Attack(
        "writes of the whole machine",
        "import ctypes, os\ndef f(x): return ctypes.CDLL(None).syncfs(os.open('/tmp', os.O_RDONLY))",
        tests="assert f(1) == 0",
    ),
    Attack(
        "numbers that the machine shares",
        "import ctypes\ndef f(x):\n libc, a = ctypes.CDLL(None), ctypes.c_ulong(0)\n return libc.inotify_init1(0), libc.syscall(206, 1000, ctypes.byref(a))",
        tests="assert max(f(1)) >= 0",
    ),
    Attack(
        "limits of its keeper",
        "import os, resource\ndef f(x):\n try: resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0)); return True\n except OSError: return False",
        tests="assert f(1) is True",
    ),
    Attack(
        "terminals of others",
        "import os\ndef f(x):\n try: return os.open('/dev/ptmx', os.O_RDWR) >= 0\n except OSError: return os.listdir('/dev/pts') != []",
        tests="assert f(1) is True",
    ),
    Attack(
        "lock files of the system",
        "import fcntl, os\ndef f(x):\n with open(os.__file__) as h: fcntl.flock(h, fcntl.LOCK_EX)\n return x + 1",
    ),
    Attack("kernel modules", "import ctypes\ndef f(x): return ctypes.CDLL(None).delete_module(b'x', 0) or x + 1"),
    Attack("restart the machine", "import ctypes\ndef f(x): return ctypes.CDLL(None).reboot(0x1234567) or x + 1"),
]

ESCAPE = [
    Attack(
        "read a file of the user",
        "def f(x):\n import os\n return [open(p).read() for p in ['@SECRET@'] if os.path.exists(p)]",
        tests="assert f(1) == ['@TOKEN@']",
    ),
    Attack(
        "walk the disk",
        "import os\ndef f(x):\n for top in {t for t in os.listdir('/') if not os.path.islink('/' + t)} - {'proc', 'sys', 'usr'}:\n"
        "  for d, _, names in os.walk('/' + top):\n   if 'secret-of-the-test.txt' in names: return open(d + '/secret-of-the-test.txt').read()",
        tests="assert f(1) == '@TOKEN@'",
    ),
    Attack("environment", "import os\ndef f(x): return os.environ.get('T2_TEST_SECRET')", tests="assert f(1) == '@TOKEN@'"),
    Attack(
        "environment of others",
        "import os, glob\ndef f(x):\n for p in glob.glob('/proc/*/environ'):\n  try:\n   if b'@TOKEN@' in open(p, 'rb').read(): return True\n"
        "  except OSError: pass\n return False",
        tests="assert f(1) is True",
    ),
    Attack(
        "open descriptors",
        "import os\ndef f(x):\n for fd in range(256):\n  try:\n   if b'@TOKEN@' in os.pread(fd, 1 << 20, 0): return True\n  except OSError: pass\n return False",
        tests="assert f(1) is True",
    ),
    Attack(
        "descriptors of the parents",
        "import os, glob\ndef f(x):\n for p in glob.glob('/proc/*/fd/*') + glob.glob('/proc/*/r*t/tmp/*/secret*'):\n"
        "  try:\n   if 'pipe' not in os.readlink(p) and b'@TOKEN@' in open(p, 'rb').read(1 << 20): return True\n  except OSError: pass\n return False",
        tests="assert f(1) is True",
    ),
    Attack(
        "see the processes that keep it",
        "import glob\ndef f(x):\n return any(b'zygote.main' in open(p, 'rb').read() for p in glob.glob('/proc/[0-9]*/cmdline'))",
        tests="assert f(1) is True",
    ),
    Attack(
        "installed packages",
        "import sys, glob\ndef f(x):\n return glob.glob(sys.base_prefix + '/lib/python3*/site-packages/*') + glob.glob('/usr/lib/python3/dist-packages/*')",
        tests="assert len(f(1)) > 0",
    ),
    Attack(
        "write outside /tmp",
        "import os\ndef f(x):\n for p in ['/', '/dev/shm/', '/proc/sys/kernel/', '/var/tmp/', *('/' + d + '/' for d in os.listdir('/') if d != 'tmp')]:\n"
        "  try:\n   open(p + 't2-was-here', 'w').close(); return p\n  except OSError: pass\n return ''",
        tests="assert f(1) != ''",
    ),
    Attack(
        "system settings",
        "def f(x):\n try: open('/proc/sys/kernel/core_pattern', 'r+').write('|/bin/sh'); return True\n except OSError: return False",
        tests="assert f(1) is True",
    ),
    Attack(
        "network",
        "import socket\ndef f(x):\n try: socket.create_connection(('127.0.0.1', @PORT@), 2); return True\n except OSError: return False",
        tests="assert f(1) is True",
    ),
    Attack(
        "network outside",
        "import socket\ndef f(x):\n s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        " try: s.sendto(b'x', ('192.0.2.1', 53)); return True\n except OSError: return False",
        tests="assert f(1) is True",
    ),
    Attack(
        "abstract sockets",
        "import socket\ndef f(x):\n s = socket.socket(socket.AF_UNIX)\n try: s.connect('\\0@ABSTRACT@'); return True\n except OSError: return False",
        tests="assert f(1) is True",
    ),
    Attack("more user namespaces", "import ctypes\ndef f(x): return ctypes.CDLL(None).unshare(0x10000000)", tests="assert f(1) == 0"),
    Attack(
        "remount",
        "import ctypes\ndef f(x): return ctypes.CDLL(None).mount(b'none', b'/usr', None, 32 | 4096, None)",
        tests="assert f(1) == 0",
    ),
    Attack(
        "become root",
        "import os\ndef f(x):\n try: os.setuid(0); os.setgroups([0]); return True\n except OSError: return False",
        tests="assert f(1) is True",
    ),
    Attack(
        "raise limits",
        "import resource\ndef f(x):\n try: resource.setrlimit(resource.RLIMIT_CPU, (999, 999)); return True\n except (OSError, ValueError): return False",
        tests="assert f(1) is True",
    ),
    Attack(
        "kill everything",
        "import os, signal\ndef f(x):\n for p in (1, os.getppid(), -1, 0):\n  try: os.kill(p, signal.SIGKILL)\n  except OSError: pass\n return 0",
        ("failed", "memory"),
    ),
    Attack(
        "symlink out",
        "import os\ndef f(x):\n os.symlink('@SECRET@', '/tmp/l')\n try: return open('/tmp/l').read()\n except OSError: return ''",
        tests="assert f(1) == '@TOKEN@'",
    ),
]

EXHAUST = [
    Attack("endless loop at load", "while True: pass", ("timeout",)),
    Attack("endless loop in call", "def f(x):\n while True: pass", ("timeout",)),
    Attack("sleeper", "import time\ndef f(x): time.sleep(10 ** 6)", ("timeout",)),
    Attack("reads stdin", "def f(x): return int(input())"),
    Attack("C-level hang", "def f(x): return 7 ** (10 ** 9) > 1", ("timeout", "memory")),
    Attack("regex hang", "import re\ndef f(x): return re.match('(a+)+$', 'a' * 60 + 'b')", ("timeout",)),
    Attack(
        "signals ignored",
        "import signal\nfor s in signal.valid_signals():\n try: signal.signal(s, signal.SIG_IGN)\n except (OSError, ValueError): pass\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\ndef f(x):\n while True: pass",
        ("timeout",),
    ),
    Attack("exceptions swallowed", "def f(x):\n while True:\n  try:\n   while True: pass\n  except BaseException: pass", ("timeout",)),
    Attack("memory", "def f(x):\n a = []\n while True: a.append(bytes(1 << 24))", ("memory",)),
    Attack(
        "memory swallowed",
        "def f(x):\n a = []\n while True:\n  try: a.append(' ' * (1 << 24))\n  except MemoryError: a.append(0)",
        ("memory", "timeout"),
    ),
    Attack(
        "zip bomb",
        "import zlib\ndef f(x):\n c = zlib.compressobj(9, zlib.DEFLATED, -15)\n"
        " chunk = c.compress(bytes(1 << 20)) + c.flush(zlib.Z_FULL_FLUSH)\n return zlib.decompress(chunk * 4096, -15)",
        ("memory", "timeout"),
    ),
    Attack(
        "zip bomb on the disk",
        "import io, zipfile\ndef f(x):\n b = io.BytesIO()\n with zipfile.ZipFile(b, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as z:\n"
        "  for i in range(9): z.writestr(str(i), bytes(8 << 20))\n zipfile.ZipFile(b).extractall('/tmp'); return x + 1",
        ("failed", "timeout"),
    ),
    Attack(
        "memory of many processes",
        "import os, time\ndef f(x):\n for _ in range(12):\n  if os.fork() == 0:\n   a = [b'x' * (1 << 20) for _ in range(300)]\n   time.sleep(60)\n"
        " time.sleep(60)",
        ("memory", "timeout"),
    ),
    Attack("memory at once", "def f(x): return [0] * 10 ** 12", ("memory",)),
    Attack(
        "children that nobody waits for",
        "import os, signal, time\ndef f(x):\n try: signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n except OSError: pass\n"
        " for _ in range(40):\n  if os.fork() == 0:\n   t = time.process_time()\n   while time.process_time() < t + 0.7: pass\n   os._exit(0)\n"
        "  try: os.wait()\n  except OSError: pass\n return x + 1",
        ("timeout",),
    ),
    Attack(
        "many short children that nobody waits for",
        "import os, signal, time\ndef f(x):\n try: signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n except OSError: pass\n"
        " for _ in range(200):\n  if os.fork() == 0:\n   t = time.process_time()\n   while time.process_time() < t + 0.02: pass\n   os._exit(0)\n"
        "  try: os.wait()\n  except OSError: pass\n return x + 1",
        ("timeout",),
    ),
    Attack("fork bomb", "import os\ndef f(x):\n while True:\n  try: os.fork()\n  except OSError: pass", ("timeout", "failed")),
    Attack(
        "too many processes",
        "import os, time\ndef f(x):\n n = 0\n try:\n  while n < 256:\n   if os.fork() == 0: time.sleep(60)\n   n += 1\n except OSError: pass\n return n",
        tests="assert f(1) == 256",
    ),
    Attack(
        "too many threads",
        "import threading, time\ndef f(x):\n threading.stack_size(65536)\n n = 0\n try:\n  while n < 256:\n"
        "   threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n   n += 1\n except RuntimeError: pass\n return n",
        tests="assert f(1) == 256",
    ),
    Attack(
        "one large file",
        "def f(x):\n try:\n  with open('/tmp/big', 'wb') as h:\n   for _ in range(64): h.write(bytes(1 << 20))\n  return True\n except OSError: return False",
        tests="assert f(1) is True",
    ),
    Attack(
        "disk full of files",
        "def f(x):\n n = 0\n try:\n  for i in range(64):\n   with open(f'/tmp/{i}', 'wb') as h: h.write(bytes(4 << 20))\n   n += 1\n except OSError: pass\n return n",
        tests="assert f(1) == 64",
    ),
    Attack("output flood", "def f(x):\n while True: print('x' * 4096)", ("output_limit",)),
    Attack("output flood at load", "import os\nwhile True: os.write(2, b'x' * 65536)", ("output_limit",)),
    Attack("flood, then right", "def f(x):\n print('x' * (9 << 20)); return x + 1", ("output_limit",)),
    Attack("recursion", "def f(x): return f(x)"),
    Attack(
        "recursion without limit",
        "import sys\nsys.setrecursionlimit(10 ** 9)\nclass A:\n def __repr__(s): return repr(A())\ndef f(x): return repr(A())",
        ("failed", "memory", "timeout"),
    ),
    Attack("deep value", "def f(x):\n a = []\n for _ in range(100_000): a = [a]\n return a"),
    Attack("cyclic value", "def f(x):\n a = []\n a.append(a)\n return a"),
    Attack("billion laughs", "def f(x):\n a = ['ha']\n for _ in range(40): a = [a, a]\n return a", ("failed", "timeout", "memory")),
    Attack("huge string", "def f(x): return 'x' * (200 << 20)", ("failed", "memory", "timeout")),
    Attack("huge int", "def f(x): return 1 << (8 * (200 << 20))", ("failed", "memory", "timeout")),
    Attack("segfault", "import ctypes\ndef f(x): return ctypes.string_at(0)"),
    Attack("abort", "import os\ndef f(x): os.abort()"),
    Attack("closes everything, then sleeps", "import os, time\ndef f(x):\n os.closerange(0, 256); time.sleep(10 ** 6)"),
    Attack("stops itself", "import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGSTOP)", ("timeout",)),
    Attack("replaces itself", "import os\ndef f(x): os.execv('/usr/bin/env', ['env', 'true'])"),
]

SYNTAX = [
    Attack("no program", "Here is the code you wanted:", ("syntax_error",)),
    Attack("null byte", "def f(x): return x + 1\0", ("syntax_error",)),
    Attack("open bracket", "def f(x): return (x + 1", ("syntax_error",)),
    Attack("nested too deep", "f = " + "(" * 5000 + "1" + ")" * 5000, ("syntax_error",)),
    Attack("parser memory", "f = " + "-" * 200_000 + "1", ("syntax_error", "failed")),
    Attack("lone surrogate", "s = '\ud800'\ndef f(x): return x", ("syntax_error", "failed")),
    Attack("empty", ""),
]

ALL = FALSE_PASS + ESCAPE + KERNEL + EXHAUST + SYNTAX
