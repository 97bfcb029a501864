"""Attacks on the sandbox: each is contained, none passes, and what comes next is judged as ever."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_pipeline.domains import VerifierLimits
from data_pipeline.scoring.code.scorer import CodeScorer
from data_pipeline.scoring.sandbox import judge, tiers
from data_pipeline.scoring.sandbox.heap import EXAMINER, PROGRAM, Heap
from data_pipeline.scoring.sandbox.values import Decoder, Encoder, Malformed
from data_pipeline.scoring.scorer import Item, Score
from fusejax.common.cli import UserError
from tests.data_pipeline.scoring.bait import Bait, nobody_left

START = "os = __import__('os')\nsys = __import__('sys')\n"
TESTS = ["assert f(1) == 7345", "assert f(2) == 7346"]
GOOD = "def f(x):\n    return x + 7344"


@dataclass(frozen=True)
class Attack:
    name: str
    program: str
    tests: list[str]
    verdict: str


def read_attacks() -> list[Attack]:
    text = Path(__file__).with_name("attacks.txt").read_text()
    parts = re.split(r"^=== (\w+)(?:: (\w+))?\n", text, flags=re.MULTILINE)[1:]
    attacks = []
    for name, verdict, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        program, _, tests = body.partition("--- tests\n")
        attacks.append(Attack(name, START + program, [tests] if tests else TESTS, verdict or "wrong"))
    return attacks


ATTACKS = read_attacks()


@pytest.fixture(scope="module")
def scorer(tier: tiers.Tier) -> CodeScorer:
    return CodeScorer(VerifierLimits(timeout_seconds=1, memory_mb=512), 1, tier=tier)


def score(scorer: CodeScorer, *programs: str, tests: list[str]) -> list[Score]:
    return scorer.score([Item({"tests": tests}, f"```python\n{program}\n```") for program in programs])


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attacks(scorer: CodeScorer, bait: Bait, descendants: set[int], attack: Attack):
    program = attack.program
    for word, value in bait.words.items():
        program = program.replace(word, value)
    items = [Item({"tests": attack.tests}, f"```python\n{program}\n```")]
    # A comment makes each program new to the scorer's memory.
    items.append(Item({"tests": TESTS}, f"```python\n{GOOD}  # after {attack.name}\n```"))
    found, after = scorer.score(items)
    assert found.verdict == attack.verdict, found.detail
    assert (after.verdict, after.detail) == ("correct", "passed")
    assert nobody_left(descendants)
    bait.check()


def test_enough_attacks():
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 40


def test_nothing_is_left_for_the_next_program(scorer: CodeScorer):
    writes = "def f(x):\n    with open('a', 'w') as file:\n        return file.write(x)"
    reads = "def f(x):\n    try:\n        return open('a').read()\n    except FileNotFoundError:\n        return len(x)"
    verdicts = [found.verdict for found in score(scorer, writes, reads, tests=["assert f('7345') == 4"])]
    assert verdicts == ["correct", "correct"]


LONG_RUN = r"""
import sys
from data_pipeline.domains import VerifierLimits
from data_pipeline.scoring.scorer import Item
from data_pipeline.scoring.code.scorer import CodeScorer
from data_pipeline.scoring.sandbox import tiers
tier = next(tier for tier in tiers.tiers(allow_unsafe=False) if tier.name == sys.argv[1])
scorer = CodeScorer(VerifierLimits(timeout_seconds=60), 1, tier=tier)
print("ready", flush=True)
scorer.score([Item({"tests": ["assert f(1) == 1"]}, f"```python\n{sys.argv[2]}\n```")])
"""


@pytest.mark.parametrize("body", ["while True: pass", "__import__('time').sleep(1000)"])
def test_a_killed_pipeline_leaves_nobody_behind(tier: tiers.Tier, descendants: set[int], body: str):
    command = [sys.executable, "-c", LONG_RUN, tier.name, f"def f(x):\n    {body}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        time.sleep(1)  # It runs now.
        process.send_signal(signal.SIGKILL)
    assert nobody_left(descendants)


def test_a_program_may_use_its_own_scratch(scorer: CodeScorer):
    program = """
def f(x):
    with open('a', 'a+') as file:
        file.write('x')
        file.seek(0)
        return len(file.read())
"""
    assert score(scorer, program, tests=["assert f(1) == 1", "assert f(1) == 2"])[0].verdict == "correct"


VALUES = {
    "identity and cycles": (
        "def f(x):\n    x.append(x)\n    return x",
        "y = [1]\nz = f(y)\nassert z is y and y[1] is y and len(y) == 2",
    ),
    "changed in place": ("def f(x):\n    x.sort()", "y = [3, 1]\nassert f(y) is None\nassert y == [1, 3]"),
    "functions of the tests": (
        "def f(g, x):\n    return [g(v) for v in x]",
        "assert f(lambda v: v * 2, (1, 2)) == [2, 4]",
    ),
    "generators": ("def f(x):\n    yield x\n    yield {x}", "assert list(f(1)) == [1, {1}]"),
    "exceptions": (
        "class E(ValueError):\n    pass\ndef f(x):\n    raise E('no')",
        "try:\n    f(1)\n    assert False\nexcept E as error:\n    assert str(error) == 'no'",
    ),
    "objects of the program's": (
        "class S:\n    def __init__(self):\n        self.x = []\n"
        "    def push(self, v):\n        self.x.append(v)\n    def __len__(self):\n        return len(self.x)",
        "s = S()\ns.push(3)\nassert len(s) == 1 and s.x == [3] and isinstance(s, S)",
    ),
    "collections": (
        "from collections import Counter, namedtuple\nP = namedtuple('P', 'a b')\n"
        "def f(x):\n    return Counter(x), P(1, 2.5), 10**30, {1: (2,)}",
        "c, p, n, d = f('aab')\nassert c == {'a': 2, 'b': 1} and c['z'] == 0\n"
        "assert p == (1, 2.5) and p.b == 2.5 and n == 10**30 and d[1] == (2,)",
    ),
    "no function": ("f = [1, {2: {3}}]", "assert f == [1, {2: {3}}]"),
    "infinity": ("import math\ndef f(x):\n    return math.inf", "assert f(1) == float('inf') and math.isinf(f(1))"),
    "returned functions": ("def f(x):\n    return lambda y: x + y", "assert f(1)(2) == 3"),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_arrive_as_they_are(scorer: CodeScorer, name: str):
    code, test = VALUES[name]
    assert score(scorer, code, tests=[test]) == [Score(verdict="correct", extracted=code + "\n", detail="passed")]
    assert score(scorer, code, tests=[test, "assert False"])[0].verdict == "wrong"


def test_long_linked_lists_and_cycles():
    values: list = []
    for _ in range(50_000):
        values = [values]
    values.append(values)
    message = Encoder(Heap(EXAMINER), frozenset(), lambda value, encoder: []).message(values)
    decoder = Decoder(Heap(PROGRAM), message, lambda name: None, lambda node, part: None)
    decoded = decoder.get(message["refs"][0])
    assert decoded[1] is decoded
    for _ in range(50_000):
        decoded = decoded[0]
    assert decoded == []


@pytest.mark.parametrize(
    "nodes",
    [
        None,
        [1],
        [[]],
        [["list", [[5]]]],
        [["list", 3]],
        [["at", 0, ["list", []]]],
        [["tuple", [[0]]]],
        [["os.system"]],
        [["type", "exec"]],
        [["object", "X", []]],
        [["int", 5]],
        [["set", [[1]]], ["list", []]],
        [["namedtuple", "a b", ["x"], [1], None], ["tuple", []]],
        [["named", [1], [1]], ["type", "int"]],
        [["named", [1], []], ["namedtuple", "P", ["x"], [2], None], ["tuple", []]],
        [["exception", [1], [2], [], None, None, False], ["type", "int"], ["tuple", []]],
        [["exception", [1], [2], [], 5, None, False], ["type", "ValueError"], ["tuple", []]],
        [["library", "os", "system"]],
        [["library", "subprocess", "Popen"]],
        [["view", "clear", [1]], ["dict", []]],
        [["view", "keys", [1]], ["list", []]],
        [["ChainMap", [1]], ["list", [1]]],
        [["member", "Color", "RED"]],
        [["bytes", "zz"]],
        [["range", 1, 2, 0]],
        [["dict", [[1]]]],
        [["Fraction", "0x1", "0x0"]],
        [["Decimal", "x"]],
    ],
)
def test_malformed_messages_are_refused(nodes: object):
    def refuse(node: list, part: Callable) -> None:
        raise Malformed(str(node))

    with pytest.raises(Malformed):
        Decoder(Heap(PROGRAM), {"nodes": nodes, "base": 1}, lambda name: None, refuse)


def test_no_wall_no_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiers.confine, "landlock_abi", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"no sandbox .*no bwrap, no Landlock.*--allow-unsafe"):
        judge.strongest(allow_unsafe=False)
    assert judge.strongest(allow_unsafe=True).name == "unsafe"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes its user")
def test_programs_are_not_root(scorer: CodeScorer):
    code = START + "def f(x):\n    return os.getuid()"
    assert score(scorer, code, tests=[f"assert f(1) == {tiers.SCRATCH_USER}"])[0].verdict == "correct"


PATHS = ("/etc/passwd", "/no/such", "/root", "/proc/1", "/proc/999999", "/tmp", "../../etc/passwd", "../no/such")
PROBES = """
def f(x):
    def answer(call, *arguments):
        try:
            call(*arguments)
            return 'done'
        except OSError as error:
            return error.errno
    c = __import__('ctypes').CDLL(None, use_errno=True)
    def number(n, *arguments):
        if c.syscall(n, *arguments) < 0:
            raise OSError(__import__('ctypes').get_errno(), '')
    path = x.encode()
    return [
        answer(open, x), answer(open, x + '/a', 'w'), answer(open, x + '/a'), answer(os.open, x, os.O_DIRECTORY),
        answer(os.stat, x), answer(os.lstat, x), answer(os.access, x, 0), answer(os.readlink, x),
        answer(os.listdir, x), answer(os.chdir, x), answer(os.rename, x, 'a'), answer(os.unlink, x),
        answer(os.rename, 'b', x + '/b'), answer(os.mkdir, x), answer(os.utime, x), answer(os.statvfs, x),
        answer(os.link, x, 'c'), answer(os.execv, x, ['x']), answer(os.getxattr, x, 'user.a'),
        answer(number, 437, -100, path, bytes(24), 24), answer(number, 332, -100, path, 0, 0, bytes(256)),
        answer(number, 439, -100, path, 0, 0), answer(number, 76, path, 0), answer(number, 161, path),
    ]
"""


@pytest.mark.parametrize("rooted", [True, False])
def test_no_error_tells_whether_a_file_exists(tier: tiers.Tier, rooted: bool, monkeypatch: pytest.MonkeyPatch):
    if tier.bubblewrap:
        pytest.skip("its files are a few of the system's, and none of anybody's own")
    if not rooted:
        text = tiers._START.replace("zygote.main(", "zygote.confine.stay_in = lambda directory: False; zygote.main(")
        monkeypatch.setattr(tiers, "_START", text)
    scorer = CodeScorer(VerifierLimits(timeout_seconds=5, memory_mb=512), 1, tier=tier)
    alike = "answers = [f(path) for path in {paths!r}]\nassert all(answer == answers[0] for answer in answers), answers"
    for paths in (PATHS[:6], PATHS[6:]):
        (found,) = score(scorer, START + PROBES, tests=[alike.format(paths=paths)])
        assert found.verdict == "correct", found.detail


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes its user")
def test_another_user_than_root_has_no_paths_either(tmp_path: Path):
    code = (
        "import os, sys; sys.path.append(sys.argv[1]); import sandbox.confine as confine\n"
        "os.setresuid(61437, 61437, 61437)\n"
        "print(confine.stay_in(sys.argv[2]) and (os.listdir('/'), os.path.exists('/etc')))\n"
        "try: os.chroot('.')\nexcept PermissionError: print('refused')"
    )
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents:
        if folder.owner() == tmp_path.owner() and not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    root = Path(judge.__file__).parents[1]
    command = [os.path.realpath(sys.executable), "-S", "-c", code, str(root), str(tmp_path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert output in (["([], False)", "refused"], ["False", "refused"])
