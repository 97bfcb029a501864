"""Which modules programs and their tests may import.

The confinement holds whatever they import; but a program's process can open no files, so all is loaded before.
"""

ALLOWED_IMPORTS = frozenset(
    [
        "__future__",
        "abc",
        "array",
        "bisect",
        "calendar",
        "cmath",
        "collections",
        "copy",
        "dataclasses",
        "datetime",
        "decimal",
        "enum",
        "fractions",
        "functools",
        "hashlib",
        "heapq",
        "itertools",
        "json",
        "math",
        "numbers",
        "operator",
        "queue",
        "random",
        "re",
        "statistics",
        "string",
        "sys",
        "textwrap",
        "time",
        "types",
        "typing",
        "unicodedata",
    ]
)
"""For training data, where a program that needs more than this is left out."""

BENCHMARK_IMPORTS = ALLOWED_IMPORTS | frozenset(
    [
        "argparse", "ast", "atexit", "base64", "binascii", "builtins", "codecs", "colorsys", "contextlib",
        "contextvars", "copyreg", "csv", "difflib", "doctest", "errno", "fileinput", "fnmatch", "gc", "getopt",
        "getpass", "glob", "graphlib", "hmac", "html", "inspect", "io", "ipaddress", "keyword", "linecache",
        "locale", "logging", "marshal", "numpy", "optparse", "os", "pathlib", "pickle", "platform", "pprint",
        "reprlib", "sched", "secrets", "shlex", "shutil", "signal", "struct", "tempfile", "threading", "timeit",
        "token", "tokenize", "traceback", "unittest", "urllib", "uuid", "warnings", "weakref", "zlib",
        "zoneinfo",
    ]
)  # fmt: skip
"""For benchmarks, where each answer is right or wrong. What needs files, processes, threads or the network is refused
by the confinement when it is used."""

_IMPORTED_LATE = ("_strptime", "collections.abc", "encodings.ascii", "encodings.latin_1", "encodings.utf_16")
"""Modules that Python imports on first use."""
_SUBMODULES = {
    "numpy": ("numpy.fft", "numpy.linalg", "numpy.ma", "numpy.polynomial", "numpy.random"),
    "urllib": ("urllib.parse",),
}
"""Parts of packages that programs use, and that do not come with the package."""


def preloaded(imports: frozenset[str]) -> tuple[str, ...]:
    """The modules that a sandbox loads at its start, for programs that may import what is named."""
    parts = (part for package, submodules in _SUBMODULES.items() if package in imports for part in submodules)
    return (*sorted(imports), *_IMPORTED_LATE, *parts)
