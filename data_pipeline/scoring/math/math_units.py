"""Units of measurement as exact multiples of each other, so that 2 km are 2000 m and 5 kg are not 5 g."""

from fractions import Fraction

_KINDS = {
    "length": {
        "mm millimeter millimetre": "0.001",
        "cm centimeter centimetre": "0.01",
        "m meter metre": "1",
        "km kilometer kilometre": "1000",
        "in inch": "0.0254",
        "ft foot feet": "0.3048",
        "yard yd": "0.9144",
        "mi mile": "1609.344",
    },
    "mass": {
        "mg milligram": "0.001",
        "g gram": "1",
        "kg kilogram": "1000",
        "lb pound": "453.59237",
        "oz ounce": "28.349523125",
    },
    "time": {"second sec": "1", "minute min": "60", "hour hr": "3600", "day": "86400", "week": "604800"},
    "volume": {"ml milliliter millilitre": "0.001", "l liter litre": "1"},
    "money": {"cent": "0.01", "dollar": "1"},
}
_UNITS = {
    name: (kind, Fraction(size))
    for kind, units in _KINDS.items()
    for names, size in units.items()
    for name in names.split()
}


def measure(unit: str) -> tuple[str, Fraction] | None:
    """(what it measures, size in a unit common to all that measure it), None for a unit that is not known.

    Args:
      unit: singular, in lower case, with a `2` or `3` behind it for areas and volumes.

    >>> measure("km"), measure("cm2"), measure("apple")
    (('length', Fraction(1000, 1)), ('length2', Fraction(1, 10000)), None)
    """
    power = unit[-1:] if unit[-1:] in ("2", "3") else ""
    found = _UNITS.get(unit.removesuffix(power))
    return (found[0] + power, found[1] ** int(power or 1)) if found else None
