"""What checks annotations in tests: beartype, with an int taken where a float is asked for, as type checkers do."""

from typing import Any

import polars as pl
from beartype import BeartypeConf, BeartypeHintOverrides, beartype

check = beartype(
    conf=BeartypeConf(
        is_pep484_tower=True,
        # The type arguments of `pl.Schema`, which beartype refuses: their repr is not that of a type. The class itself
        # is checked all the same.
        hint_overrides=BeartypeHintOverrides({pl.DataType: Any}),
    )
)
