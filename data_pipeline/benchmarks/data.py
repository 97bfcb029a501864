"""Where the items come from: files that the user brought, else the Hub."""

import hashlib
import importlib.util
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import huggingface_hub
from etils import epath
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from data_pipeline.benchmarks.benchmark import Benchmark, DataFile, Item, Row
from data_pipeline.benchmarks.config import BenchmarkConfig, SettingConfig
from data_pipeline.config import RowsConfig
from data_pipeline.prompts import reading, row_files
from data_pipeline.stage_files import stable_hash
from fusejax.common.cli import UserError, note, one_line
from fusejax.common.files import ROW_SUFFIXES


def items(config: BenchmarkConfig, benchmark: Benchmark) -> list[Item]:
    """The benchmark's items, in order; with a limit, those that the seed draws, in the same order.

    Raises:
      UserError: a file is nowhere, or a row of it is not as the benchmark needs it.
    """
    setting = config.chosen[benchmark.name]
    found = benchmark.items(rows(config, setting, benchmark))
    if not found:
        raise UserError(f"{benchmark.name}: its data hold no items")
    if twice := next((name for name, count in Counter(item.id for item in found).items() if count > 1), None):
        raise UserError(f"{benchmark.name}: its data hold {twice} more than once")
    limit = setting.limit or config.limit or len(found)
    if limit >= len(found):
        return found
    # Units are drawn whole: a comparison of two items that belong together needs both.
    units = list(dict.fromkeys(item.unit or item.id for item in found))
    random.Random(stable_hash(config.seed, "limit", benchmark.name)).shuffle(units)
    kept: set[str] = set()
    sizes = dict.fromkeys(units, 0)
    for item in found:
        sizes[item.unit or item.id] += 1
    count = 0
    for unit in units:
        if count >= limit:
            break
        kept.add(unit)
        count += sizes[unit]
    return [item for item in found if (item.unit or item.id) in kept]


def sha256(items: Sequence[Item]) -> str:
    """What the items hold, as one hash."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.id, item.fields], sort_keys=True, default=str).encode() + b"\0")
    return digest.hexdigest()


def rows(config: BenchmarkConfig, setting: SettingConfig, benchmark: Benchmark) -> dict[str, Sequence[Row]]:
    """Name of each data file -> its rows.

    Raises:
      UserError: a file is nowhere, or cannot be read.
    """
    found: dict[str, Sequence[Row]] = {}
    for number, (name, file) in enumerate(benchmark.files.items()):
        brought = setting.data if number == 0 and setting.data else _brought(config.data_dir, name)
        keep = getattr(benchmark, "keep", lambda row: True)
        kept = []
        for where, row in _rows(benchmark.name, name, file, brought, config.data_dir):
            if not isinstance(row, dict):
                raise UserError(f"{benchmark.name}: {where}: no JSON object")
            if keep(row):
                kept.append(row)
        found[name] = kept
    return found


def _brought(folder: str | None, name: str) -> str | None:
    """The user's file of this name."""
    if folder is None:
        return None
    names = [epath.Path(folder) / f"{name}{suffix}" for suffix in ROW_SUFFIXES]
    return next((str(path) for path in names if path.is_file()), None)


def _installed(file: str | None) -> epath.Path | None:
    """A file of a package, if that is installed."""
    package, _, rest = (file or "").partition("/")
    spec = importlib.util.find_spec(package) if package else None
    folders = spec.submodule_search_locations if spec else None
    found = [epath.Path(folder) / rest for folder in folders or []]
    return next((path for path in found if path.is_file()), None)


def _rows(
    benchmark: str, name: str, file: DataFile, brought: str | None, folder: str | None
) -> Iterator[tuple[str, Row]]:
    if brought is not None:
        yield from reading.rows(RowsConfig(path=brought), benchmark)
        return
    if (packaged := _installed(file.installed)) is not None:
        yield from row_files.rows(packaged, benchmark)
        return
    place = f"{Path(folder) / name}.jsonl" if folder else f"{name}.jsonl in a data_dir"
    if not file.path:
        raise UserError(f"{benchmark}: no {place}: bring {file.bring}")
    note(f"{benchmark}: loading {name} from {file.path} on the Hub or its cache")
    try:
        if file.file is not None:
            local = huggingface_hub.hf_hub_download(file.path, file.file, repo_type="dataset", revision=file.revision)
            yield from row_files.rows(epath.Path(local), benchmark)
            return
        subsets = file.subset if isinstance(file.subset, tuple) else (file.subset,)
        for subset in subsets:
            source = RowsConfig(path=file.path, subset=subset, split=file.split, revision=file.revision)
            yield from reading.rows(source, benchmark)
    except (UserError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        bring = file.bring or f"{file.path} on the Hub"
        raise UserError(f"{benchmark}: no {place}, and the Hub gives none ({one_line(error)}); bring {bring}") from None
