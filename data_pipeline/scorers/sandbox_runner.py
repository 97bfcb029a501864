"""The other side of `sandbox`: run by path in isolated Python, it reads a job on stdin and reports on stdout."""

import json
import math
import os
import resource
import signal
import sys
import types


def main() -> None:
    job = json.loads(sys.stdin.buffer.read())
    report = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    seconds, memory = math.ceil(job["cpu_seconds"]), job["memory_mb"] * 2**20
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    # Should the judge die, nobody else would end a program that sleeps.
    signal.alarm(math.ceil(job["wall_seconds"]) + 1)
    failed = run(job["setting"], job["code"], job["tests"])
    os.write(report, json.dumps({"nonce": job["nonce"], "failed": failed}).encode())
    os._exit(0)


def run(setting: str, code: str, tests: list) -> "str | None":
    """What failed, or None. The program is a module of its own, so that its dataclasses and `__main__` guards work."""
    module = types.ModuleType("answer")
    sys.modules["answer"] = module
    where = "setting"
    try:
        exec(compile(setting, "setting.py", "exec"), module.__dict__)
        where = "import"
        exec(compile(code, "answer.py", "exec"), module.__dict__)
        for number, test in enumerate(tests, 1):
            where = f"test_{number}"
            exec(compile(test, f"{where}.py", "exec"), module.__dict__)
    except BaseException as error:  # SystemExit too: an answer that exits fails.
        # The program is not to blame for the tests' setting, nor for what a test itself imports.
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        raised_in = frame.tb_frame.f_code.co_filename if frame is not None else ""
        imported = isinstance(error, ImportError) and raised_in == f"{where}.py"
        blamed = where == "setting" or (imported and where.startswith("test_"))
        kind = "bad_test" if blamed else "error" if where == "import" else "failed_test"
        return f"{kind}: {where}: {type(error).__name__}: {str(error)[:200]}"
    return None


main()
