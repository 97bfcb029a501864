"""`fusejax configs [NAME ...] [--output DIR]`: the configurations that come with the package, listed or copied."""

import argparse
import shutil
from pathlib import Path

from fusejax.common.cli import UserError, command_parser, note, run

DESCRIPTION = """\
Lists the configurations that come with fusejax, or copies them to where they can be read and changed.

Reads   nothing but the package
Writes  with NAME: DIR/NAME/..., where nothing that exists is replaced"""

EXAMPLE = """\
example:
  {program}
  {program} fusechat3 --output configs"""


def configs_folder() -> Path:
    """Where the configurations lie: in the package as a wheel installs it, else beside it in a clone."""
    package = Path(__file__).parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="a folder or a file of the list (default: list them)")
    parser.add_argument("--output", default="configs", metavar="DIR", help="where to copy to (default: configs)")


def main(arguments: list[str] | None = None, program: str = "python -m fusejax.configs") -> None:
    parser = command_parser(program, DESCRIPTION, EXAMPLE)
    add_options(parser)
    options = parser.parse_args(arguments)
    folder = configs_folder()
    files = sorted(file.relative_to(folder) for file in folder.glob("*/*") if file.is_file())
    if not options.names:
        print(*files, sep="\n")
        return
    for name in options.names:
        wanted = [file for file in files if Path(name) in (file, file.parent)]
        if not wanted:
            raise UserError(
                f"{name}: no such configuration; there are {', '.join(sorted({f.parts[0] for f in files}))}"
            )
        for file in wanted:
            _copy(folder / file, Path(options.output) / file)


def _copy(source: Path, target: Path) -> None:
    if target.exists():
        if target.read_bytes() != source.read_bytes():
            raise UserError(f"{target} exists and is another; choose another --output")
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    except OSError as error:
        raise UserError(f"--output: {target}: {error.strerror}") from None
    note(str(target))


if __name__ == "__main__":
    run(main)
