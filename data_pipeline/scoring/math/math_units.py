"""Units of measurement as exact multiples of each other, so that 2 km are 2000 m and 5 kg are not 5 g."""

from fractions import Fraction

_KINDS = {
    "length": {
        "mm millimeter millimetre 毫米": "0.001",
        "cm centimeter centimetre 厘米": "0.01",
        "dm decimeter decimetre 分米": "0.1",
        "m meter metre 米": "1",
        "km kilometer kilometre 千米 公里": "1000",
        "in inch": "0.0254",
        "ft foot feet": "0.3048",
        "yard yd": "0.9144",
        "mi mile": "1609.344",
    },
    "mass": {
        "mg milligram": "0.001",
        "g gram 克": "1",
        "kg kilogram 千克 公斤": "1000",
        "lb pound": "453.59237",
        "oz ounce": "28.349523125",
    },
    "time": {
        "second sec s 秒": "1",
        "minute min 分钟": "60",
        "hour hr h 小时": "3600",
        "day 天": "86400",
        "week": "604800",
    },
    "volume": {"ml milliliter millilitre 毫升": "0.001", "l liter litre 升": "1"},
    "money": {"cent": "0.01", "$ dollar usd": "1"},
    "euro": {"€ euro eur": "1"},
    "sterling": {"£ gbp": "1"},
    "yuan": {"¥ yuan rmb cny 元": "1", "角": "0.1"},
    "rupee": {"₹ rupee inr": "1"},
    "calendar": {"month": "1", "year": "12"},
    "angle": {"° 度": "1"},
    "radians": {"radian rad": "1"},
    "celsius": {"°c": "1"},
    "fahrenheit": {"°f": "1"},
    "count": {"dozen": "12"},
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
