"""Attacks on the sandbox: each is contained, none passes, and what comes next is judged as ever."""

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.config import ScorerConfig
from data_pipeline.scorers.base import Item, Score
from data_pipeline.scorers.code import CodeScorer
from data_pipeline.scorers.sandbox import judge, tiers
from data_pipeline.scorers.sandbox.values import Decoder, Encoder, Malformed
from fusejax.cli import UserError

TIERS = [tier for tier in tiers.tiers(allow_unsafe=False)]
SECRET = "SECRET-7345"
# Nothing an attack gains may be 7345 by chance: the test asks for it, and only who escapes can give it.
TESTS = ["assert f(1) == 7345", "assert f(2) == 7346"]
GOOD = "def f(x):\n    return x + 7344"
START = "os = __import__('os')\nsys = __import__('sys')\n"

# Programs that, if what they try succeeds, give the right answer.
ESCAPES = {
    "fork": "def f(x):\n    os.fork()\n    return x + 7344",
    "fork_bomb": "def f(x):\n    while True:\n        os.fork()",
    "posix_spawn": "def f(x):\n    os.posix_spawn('/bin/true', ['true'], {})\n    return x + 7344",
    "exec": "def f(x):\n    os.execv('/bin/sh', ['sh', '-c', 'echo'])",
    "subprocess": "def f(x):\n    __import__('subprocess').run(['/bin/true'])\n    return x + 7344",
    "thread": "def f(x):\n    __import__('_thread').start_new_thread(print, ())\n    return x + 7344",
    "daemon": "def f(x):\n    if os.fork() == 0:\n        os.setsid()\n        while True: pass\n    return x + 7344",
    "memory": "def f(x):\n    y = bytearray(8 << 30)\n    return x + 7344",
    "memory_slowly": "def f(x):\n    y = []\n    while True:\n        y.append(bytearray(1 << 20))",
    "disk_one_file": "def f(x):\n    open('a', 'wb').write(bytes(64 << 20))\n    return x + 7344",
    "disk_many_files": (
        "def f(x):\n    n = 0\n    while True:\n        n += 1\n        open(str(n % 4000), 'wb').write(bytes(1 << 20))"
    ),
    "output_flood": "def f(x):\n    while True:\n        os.write(1, bytes(1 << 20))",
    "reply_flood": "def f(x):\n    while True:\n        os.write(4, bytes(1 << 20))",
    "huge_result": "def f(x):\n    return [0] * (1 << 24)",
    "deep_result": "def f(x):\n    y = ()\n    for _ in range(100000): y = (y,)\n    return y",
    "infinite_loop": "def f(x):\n    while True: pass",
    "infinite_loop_caught": "import sys\n__import__('signal').signal(24, lambda *a: None)\ndef f(x):\n    while True: pass",
    "infinite_iterator": "def f(x):\n    while True: yield 1",
    "sleep": "def f(x):\n    __import__('time').sleep(1000)",
    "deadlock": "def f(x):\n    y = __import__('_thread').allocate_lock()\n    y.acquire()\n    y.acquire()",
    "kill_parent": "def f(x):\n    os.kill(os.getppid(), 9)\n    return x + 7344",
    "kill_all": "def f(x):\n    os.kill(-1, 9)\n    return x + 7344",
    "stop_siblings": "def f(x):\n    [os.kill(os.getpid() + n, 19) for n in (1, 2)]\n    return x + 7344",
    "signal_by_owner": "def f(x):\n    __import__('fcntl').fcntl(3, 8, os.getppid())\n    return x + 7344",
    "tcp": "def f(x):\n    __import__('socket').create_connection(('127.0.0.1', PORT), 1)\n    return x + 7344",
    "udp": "def f(x):\n    s = __import__('socket')\n    s.socket(s.AF_INET, s.SOCK_DGRAM)\n    return x + 7344",
    "unix": "def f(x):\n    s = __import__('socket')\n    s.socket(s.AF_UNIX)\n    return x + 7344",
    "netlink": "def f(x):\n    s = __import__('socket')\n    s.socket(s.AF_NETLINK, s.SOCK_RAW)\n    return x + 7344",
    "home": "def f(x):\n    os.listdir(os.path.expanduser('~root'))\n    return x + 7344",
    "secret_file": "def f(x):\n    return int(open('SECRET_FILE').read()[-4:]) + x - 1",
    "passwd": "def f(x):\n    open('/etc/passwd').read()\n    return x + 7344",
    "environment": "def f(x):\n    return int(os.environ['FUSEJAX_SECRET'][-4:]) + x - 1",
    "parents_environment": "def f(x):\n    open(f'/proc/{os.getppid()}/environ').read()\n    return x + 7344",
    "parents_memory": "def f(x):\n    open(f'/proc/{os.getppid()}/mem', 'rb')\n    return x + 7344",
    "own_memory": "def f(x):\n    open('/proc/self/mem', 'rb+')\n    return x + 7344",
    "list_processes": "def f(x):\n    assert [p for p in os.listdir('/proc') if p.isdigit()]\n    return x + 7344",
    "ptrace": (
        "def f(x):\n    c = __import__('ctypes').CDLL(None)\n"
        "    assert c.ptrace(16, os.getppid(), 0, 0) == 0\n    return x + 7344"
    ),
    "read_other_memory": (
        "def f(x):\n    c = __import__('ctypes').CDLL(None)\n"
        "    assert c.syscall(310, os.getppid(), 0, 0, 0, 0, 0) == 0\n    return x + 7344"
    ),
    "namespace": "def f(x):\n    assert __import__('ctypes').CDLL(None).unshare(0x10000000) == 0\n    return x + 7344",
    "limits": "def f(x):\n    r = __import__('resource')\n    r.setrlimit(r.RLIMIT_CPU, (1, 1))\n    return x + 7344",
    "others_limits": "def f(x):\n    __import__('resource').prlimit(os.getppid(), 7)\n    return x + 7344",
    "set_uid": "def f(x):\n    os.setuid(0)\n    return x + 7344",
    "chmod": "def f(x):\n    open('a', 'w')\n    os.chmod('a', 0o4777)\n    return x + 7344",
    "symlink": "def f(x):\n    os.symlink('/etc/passwd', 'a')\n    return x + 7344",
    "hard_link": "def f(x):\n    open('a', 'w')\n    os.link('a', 'b')\n    return x + 7344",
    "write_outside": "def f(x):\n    open('OUTSIDE', 'w').write('x')\n    return x + 7344",
    "write_above": "def f(x):\n    open('../a', 'w').write('x')\n    return x + 7344",
    "make_directories": "def f(x):\n    os.mkdir('a')\n    return x + 7344",
    "read_the_job": "def f(x):\n    return int(os.read(0, 99999)[-4:])",
    "shared_memory": "def f(x):\n    os.memfd_create('a')\n    return x + 7344",
}  # fmt: skip

# Programs that pretend to have passed.
FORGERIES = {
    "sys_exit": "def f(x):\n    sys.exit(0)",
    "exit_on_import": "sys.exit(0)",
    "os_exit": "def f(x):\n    os._exit(0)",
    "segfault": "def f(x):\n    __import__('ctypes').string_at(0)",
    "print_the_verdict": "def f(x):\n    print('{\"verdict\": \"correct\", \"detail\": \"passed\"}', flush=True)\n    return 0",
    "write_the_verdict": (
        "def f(x):\n    for n in range(99):\n        try: os.write(n, b'{\"verdict\": \"correct\", \"detail\": \"\"}\\n')\n"
        "        except OSError: pass\n    os._exit(0)"
    ),
    "forge_a_reply": (
        "def f(x):\n    m = b'{\"verdict\":\"correct\",\"detail\":\"passed\",\"result\":true,\"nodes\":[]}'\n"
        "    os.write(4, len(m).to_bytes(4, 'big') + m)\n    os._exit(0)"
    ),
    "eq": "class Y:\n    def __eq__(self, other): return True\ndef f(x):\n    return Y()",
    "eq_of_an_int": "class Y(int):\n    def __eq__(self, other): return True\n    __hash__ = None\ndef f(x):\n    return Y(0)",
    "eq_of_a_list": "class Y(list):\n    def __eq__(self, other): return True\ndef f(x):\n    return Y()",
    "reflected_eq": "class Y(str):\n    def __req__(self, o): return True\n    def __ne__(self, o): return False\ndef f(x): return Y()",
    "patch_builtins": "b = __import__('builtins')\nb.AssertionError = int\nb.len = lambda x: 7345\ndef f(x): return 0",
    "patch_the_import": "__import__('builtins').__import__ = lambda *a, **k: 1\ndef f(x): return 0",
    "patch_exec": "__import__('builtins').exec = lambda *a: None\n__import__('builtins').compile = None\ndef f(x): return 0",
    "patch_the_server": (
        "for m in list(sys.modules.values()):\n    for n in ('examine', 'serve', 'Decoder'):\n"
        "        if hasattr(m, n): setattr(m, n, lambda *a, **k: None)\ndef f(x): return 0"
    ),
    "patch_operators": "o = __import__('operator')\no.eq = lambda a, b: True\ndef f(x): return 0",
    "frames": (
        "def f(x):\n    frame = sys._getframe()\n    while frame:\n"
        "        for v in [*frame.f_globals.values(), *frame.f_locals.values()]:\n"
        "            if '7345' in str(v)[:10000]: return 7344 + x\n        frame = frame.f_back"
    ),
    "garbage": (
        "def f(x):\n    for o in __import__('gc').get_objects():\n"
        "        if isinstance(o, str) and 'f(1) ==' in o: return 7344 + x"
    ),
    "trace": "sys.settrace(lambda f, e, a: None)\nsys.setprofile(lambda *a: None)\ndef f(x): return 0",
    "raise_success": "def f(x):\n    raise SystemExit(0)",
    "raise_a_strange_class": "class E(BaseException):\n    def __str__(self): raise E()\ndef f(x):\n    raise E()",
    "close_the_channel": "def f(x):\n    os.close(4)",
    "replace_the_channel": "def f(x):\n    os.dup2(3, 4)",
    "no_answer_no_channel": "os.closerange(0, 50)\ndef f(x): return 0",
    "lie_about_the_name": "class Y:\n    __class__ = int\n    def __int__(self): return 7345\ndef f(x): return Y()",
    "nan": "def f(x): return float('nan')",
}  # fmt: skip


@pytest.fixture(scope="module", params=TIERS, ids=lambda tier: tier.name)
def scorer(request: pytest.FixtureRequest) -> CodeScorer:
    return CodeScorer(ScorerConfig(correctness="code", timeout_seconds=1, memory_mb=512), 1, tier=request.param)


@pytest.fixture(scope="module", autouse=True)
def bait(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What attacks reach for, and would get if they could: a file that anybody may read, a folder, a server."""
    folder = tmp_path_factory.mktemp("bait")
    for path in (folder, *list(folder.parents)[:2]):
        path.chmod(0o755)
    secret = folder / "secret.txt"
    secret.write_text(SECRET)
    (folder / "open").mkdir()
    (folder / "open").chmod(0o777)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSEJAX_SECRET", SECRET)
        port = str(server.getsockname()[1])
        yield {"SECRET_FILE": str(secret), "OUTSIDE": str(folder / "open" / "x"), "PORT": port}


def score(scorer: CodeScorer, code: str, tests: list[str] | None = None) -> Score:
    # A comment makes each program new to the scorer's memory.
    items = [Item({"tests": tests or TESTS}, f"```python\n{text}\n```") for text in (code, f"# after {id(code)}\n{GOOD}")]
    attacked, after = scorer.score(items)
    if tests is None:
        assert (after.verdict, after.detail) == ("correct", "passed")
    return attacked


@pytest.mark.parametrize("name", ESCAPES)
def test_escapes(scorer: CodeScorer, bait: dict[str, str], name: str):
    code = START + ESCAPES[name]
    for word, value in bait.items():
        code = code.replace(word, value)
    found = score(scorer, code)
    assert found.verdict == "wrong", found.detail
    assert not Path(bait["OUTSIDE"]).exists()


@pytest.mark.parametrize("name", FORGERIES)
def test_forgeries(scorer: CodeScorer, name: str):
    found = score(scorer, START + FORGERIES[name])
    assert found.verdict == "wrong", found.detail


@pytest.mark.parametrize(
    ("code", "tests"),
    [
        ("class f:\n    def __init__(s, x): pass\n    def __eq__(s, o): return True", TESTS),
        ("def f(x): return 0\ndef sorted(x): return [7345]", ["assert sorted(f(1)) == [7345]"]),
        ("import math\nmath.isclose = lambda *a: True\ndef f(x): return 0", ["assert math.isclose(f(1), 3)"]),
        ("class Y:\n    def __sub__(s, o): return 0\ndef f(x): return Y()", ["assert abs(f(1) - 3) < 1"]),
        ("class Y:\n    def __contains__(s, o): return True\n    def __iter__(s): yield 0\ndef f(x): return Y()", ["assert 3 in f(1)"]),
        ("def f(x): return 0\ndef same(a, b): return True", ["def same(a, b):\n    assert a == b", "same(f(1), 3)"]),
    ],
)  # fmt: skip
def test_programs_that_would_judge_themselves_never_pass(scorer: CodeScorer, code: str, tests: list[str]):
    assert score(scorer, code, tests).verdict in ("wrong", "unknown")


def test_a_program_may_use_its_own_scratch_which_nobody_else_sees(scorer: CodeScorer):
    writes = "def f(x):\n    with open('a', 'a+') as file:\n        file.write('x')\n        file.seek(0)\n        return len(file.read())"
    for _ in range(2):
        assert score(scorer, writes, ["assert f(1) == 1", "assert f(1) == 2"]).verdict == "correct"
        writes += "\n"


@pytest.mark.parametrize(
    ("code", "test"),
    [
        ("def f(x): x.append(x); return x", "y = [1]\nz = f(y)\nassert z is y and y[1] is y and len(y) == 2"),
        ("def f(x): x.sort()", "y = [3, 1]\nassert f(y) is None\nassert y == [1, 3]"),
        ("def f(g, x): return [g(v) for v in x]", "assert f(lambda v: v * 2, (1, 2)) == [2, 4]"),
        ("def f(x):\n    yield x\n    yield {x}", "assert list(f(1)) == [1, {1}]"),
        ("class E(ValueError): pass\ndef f(x): raise E('no')", "try:\n    f(1)\n    assert False\nexcept E as e:\n    assert str(e) == 'no'"),
        ("class S:\n    def __init__(s): s.x = []\n    def push(s, v): s.x.append(v)\n    def __len__(s): return len(s.x)",
         "s = S()\ns.push(3)\nassert len(s) == 1 and s.x == [3] and s.x[0] == 3 and isinstance(s, S)"),
        ("from collections import Counter, defaultdict, namedtuple\nP = namedtuple('P', 'a b')\ndef f(x): return Counter(x), P(1, 2.5), 10**30, {1: (2,)}",
         "c, p, n, d = f('aab')\nassert c == {'a': 2, 'b': 1} and c['z'] == 0 and p.b == 2.5 and n == 10**30 and d[1] == (2,)"),
        ("f = [1, {2: {3}}]", "assert f == [1, {2: {3}}]"),
        ("import math\ndef f(x): return math.inf", "assert f(1) == float('inf') and math.isinf(f(1))"),
    ],
)  # fmt: skip
def test_values_arrive_as_they_are(scorer: CodeScorer, code: str, test: str):
    found = score(scorer, code, [test])
    assert found.verdict == "correct", found.detail
    assert score(scorer, code, [test, "assert False"]).verdict == "wrong"


def test_long_linked_lists_and_cycles():
    values: list = []
    for _ in range(50_000):
        values = [values]
    values.append(values)
    encoder = Encoder(frozenset(), lambda value: [])
    ref = encoder.add(values)
    decoded = Decoder(encoder.nodes, lambda name: None, lambda node: None).get(ref)
    assert decoded[1] is decoded
    for _ in range(50_000):
        decoded = decoded[0]
    assert decoded == []


@pytest.mark.parametrize(
    "nodes",
    [
        None, [1], [[]], [["list", [[5]]]], [["list", 3]], [["at", 0, ["list", []]]], [["tuple", [[0]]]], [["os.system"]],
        [["type", "exec"]], [["object", "X", []]], [["int", 5]], [["set", [[1]]], ["list", []]], [["named", "a b", ["x"], [1]]],
        [["bytes", "zz"]], [["range", 1, 2, 0]], [["dict", [[1]]]], [["Fraction", "0x1", "0x0"]], [["Decimal", "x"]],
    ],
)  # fmt: skip
def test_malformed_messages_are_refused(nodes: object):
    def refuse(node: list) -> None:
        raise Malformed(str(node))

    with pytest.raises(Malformed):
        Decoder(nodes, lambda name: None, refuse)


def test_no_wall_no_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiers.confine, "landlock_abi", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"no sandbox .*no bwrap, no Landlock.*scorers.allow_unsafe=true"):
        judge.strongest(allow_unsafe=False)
    assert judge.strongest(allow_unsafe=True).name == "unsafe"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes its user")
def test_programs_are_not_root(scorer: CodeScorer):
    code = START + "def f(x):\n    return os.getuid()"
    assert score(scorer, code, [f"assert f(1) == {tiers.SCRATCH_USER}"]).verdict == "correct"
