"""What a host does in a test of tokenising: `python tokenizing.py [waits] OPTIONS`: a run up to its tokens.

`waits` keeps host 0 from tokenising its own part.
"""

import sys
import time
from typing import Any

from fusejax import train
from fusejax.common.cli import run
from fusejax.data.examples import Tokenized
from fusejax.training import loop, tokenizing


def wait_on_host_0(*arguments: Any, records: range, **rules: Any) -> Tokenized:
    if records.start == 0:
        print("host 0 waits", file=sys.stderr, flush=True)
        time.sleep(600)
    return tokenize_on_all_cores(*arguments, records=records, **rules)


if __name__ == "__main__":
    tokenize_on_all_cores = tokenizing.tokenize_on_all_cores
    loop._train = lambda *_: None
    options = sys.argv[1:]
    if options[0] == "waits":
        tokenizing.tokenize_on_all_cores = wait_on_host_0
        options = options[1:]
    run(lambda: train.main(options))
