"""A data set tokenised on all cores of a host.

A tokenizer's threads do half of the work only: templates and masks are Python's. So the records of a large data set are
split among processes. They are new interpreters, for a fork of a process with JAX's threads may hang; and commands, for
`multiprocessing` would import the caller's main module in each of them.
"""

import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from transformers import PreTrainedTokenizerBase

from fusejax.data.examples import Tokenized, joined, parts, tokenize
from fusejax.data.records import Shards

RECORDS_A_PROCESS = 4096
"""At least: it takes a process seconds to start, and as long for so many records."""


def tokenize_on_all_cores(
    source: Shards, tokenizer: PreTrainedTokenizerBase, *, records: range, **rules: Any
) -> Tokenized:
    """What `tokenize` returns, by a process for each core if there are records enough.

    Raises:
      ChildProcessError: one of the processes was killed, or failed and has printed why.
    """
    count = min(_cores(), len(records) // RECORDS_A_PROCESS)
    if count < 2:
        return tokenize(source, tokenizer, records=records, **rules)
    task = pickle.dumps((source, tokenizer, rules))
    processes = [_start() for _ in range(count)]
    with ThreadPoolExecutor(count) as pool:  # a thread waits for each of them
        try:
            results = [
                pool.submit(_ask, process, task, part)
                for process, part in zip(processes, parts(records, count), strict=True)
            ]
            for result in as_completed(results):  # the first that fails ends the others
                result.result()
        finally:
            for process in processes:
                process.kill()
    return joined([result.result() for result in results])


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start() -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",  # what it says, it has said in this process
    }
    command = [sys.executable, "-m", "fusejax.data.cores"]
    # In a session of its own, so that Ctrl-C is this process's to handle.
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
    )


def _ask(process: subprocess.Popen[bytes], task: bytes, records: range) -> Tokenized:
    with process:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(task + pickle.dumps(records))
            process.stdin.flush()
            return pickle.load(process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            status = process.wait()
            what = f"was killed by signal {-status}; is there too little memory?" if status < 0 else "failed"
            raise ChildProcessError(f"a process that tokenizes records from {records.start} on {what}") from None


def _answer() -> None:
    """What a process does: a task from stdin, its result to stdout."""
    source, tokenizer, rules = pickle.load(sys.stdin.buffer)
    records = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pickle.dump(tokenize(source, tokenizer, records=records, **rules), sys.stdout.buffer)


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # it writes no more, so that this is its end
    os._exit(1)


if __name__ == "__main__":
    _answer()
