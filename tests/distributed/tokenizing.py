"""What a host does in a test of tokenising: `python tokenizing.py [SCENE] OPTIONS`: a run up to its tokens.

In the scene `waits` host 0 does not tokenise its part; in `late` it joins a split when parts of the next one are there,
and the last after a while.
"""

import sys
import time
from typing import Any

from etils import epath

from fusejax import train
from fusejax.common.cli import run
from fusejax.data.examples import Tokenized
from fusejax.training import loop, tokenizing, tokens


def wait_on_host_0(*arguments: Any, records: range, **rules: Any) -> Tokenized:
    if records.start == 0:
        print("host 0 waits", file=sys.stderr, flush=True)
        time.sleep(600)
    return tokenize_on_all_cores(*arguments, records=records, **rules)


def save_late(path: epath.Path, *arguments: Any) -> None:
    while path.name == "train.npz" and not list(path.parent.glob("eval-*")):
        time.sleep(0.05)
    if path.name == "eval.npz":
        time.sleep(5)
    save(path, *arguments)


if __name__ == "__main__":
    tokenize_on_all_cores, save = tokenizing.tokenize_on_all_cores, tokens.save
    loop._train = lambda *_: None
    options = sys.argv[1:]
    scene = options.pop(0) if not options[0].startswith("--") else None
    if scene == "waits":
        tokenizing.tokenize_on_all_cores = wait_on_host_0
    elif scene == "late":
        tokens.save = save_late
    run(lambda: train.main(options))
