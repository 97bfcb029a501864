# PYTHON_ARGCOMPLETE_OK
"""`fusejax COMMAND ...`, also `python -m fusejax COMMAND ...`: the commands of the trainer.

Each is a module of its own, which `python -m fusejax.COMMAND` runs as well. Only the one that is asked for is imported.
Shells complete commands, options, files and configuration keys after `eval "$(register-python-argcomplete fusejax)"`.
"""

import argparse
import importlib
import os
import sys

from fusejax.common import cli

COMMANDS = ("train", "plan", "export", "merge", "evaluate", "configs")
EXAMPLE = """\
`{program} COMMAND --help` tells what a command reads and writes. The data come from `python -m data_pipeline`.
exit status: 0 done, 2 a mistake of yours, told in one line, 130 interrupted; a run also ends with 75 after SIGTERM
(it has saved) and 69 if another host is lost: the same command goes on.
completion in bash and zsh: eval "$(register-python-argcomplete fusejax)\""""


def main() -> None:
    cli.run(_main)


def _main() -> None:
    program = "fusejax" if os.path.basename(sys.argv[0]) == "fusejax" else "python -m fusejax"  # noqa: PTH119
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(make_parser("fusejax"))
    arguments = sys.argv[1:]
    if arguments and arguments[0] in COMMANDS:
        name = arguments[0]
        importlib.import_module(f"fusejax.{name}").main(arguments[1:], f"{program} {name}")
    else:
        make_parser(program).parse_args(arguments)


def make_parser(program: str) -> argparse.ArgumentParser:
    """All commands with their options, for the list of commands and for completion."""
    parser = cli.command_parser(program, "Trains, plans, exports, merges and evaluates models.", EXAMPLE)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"fusejax.{name}")
        summary = module.DESCRIPTION.partition("\n\n")[0]
        module.add_options(commands.add_parser(name, help=summary))
    return parser


if __name__ == "__main__":
    main()
