"""Hard pairs of a label and an answer, with the verdict that a careful person would give.

Unknown is right only where a person could not tell either, or would have to ask how the answer was meant.
"""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.scoring.math import math_worker
from data_pipeline.scoring.math.scorer import compare_exactly

PAIRS = {
    "units": [
        ("5 cm", r"5\text{ cm}", "correct"),
        (r"2\text{ km}", r"2000\text{ m}", "correct"),
        (r"7.5\text{ hours}", "450 minutes", "correct"),
        (r"10\pi\text{ cm}^2", r"10\pi", "correct"),
        (r"5\text{ kg}", r"5\text{ g}", "wrong"),
        (r"2\text{ m}^2", r"200\text{ cm}^2", "wrong"),
        (r"5\text{ apples}", r"5\text{ pears}", "unknown"),
        (r"10\text{ cm}^2", r"10\text{ cm}^3", "unknown"),
        ("5 miles", "8.05 km", "unknown"),  # Rounded.
        (r"4\text{ a.m.}", r"4\text{ p.m.}", "unknown"),
    ],
    "money and thousands": [
        (r"\$18.90", "18.9 dollars", "correct"),
        ("1234567", "1{,}234{,}567", "correct"),
        (r"1.5\text{ million}", r"1\,500\,000", "correct"),
        (r"1.5\text{ million}", "1.5", "wrong"),
        (r"\$18.90", "1890", "wrong"),
        ("1,234", "1.234", "wrong"),
        ("1.5", "1,5", "unknown"),  # A decimal comma, or two numbers.
    ],
    "percentages": [
        (r"12\%", "0.12", "correct"),
        (r"12\%", "12 percent", "correct"),
        (r"\frac13", r"33\frac{1}{3}\%", "correct"),
        (r"12\%", "1.2", "wrong"),
        (r"0.5\%", "0.5", "unknown"),
    ],
    "fractions and mixed numbers": [
        (r"\dfrac34", "6/8", "correct"),
        (r"-1\frac{1}{2}", "-1.5", "correct"),
        (r"-\frac12", r"\frac{1}{-2}", "correct"),
        (r"\frac{2}{\frac{1}{3}}", "6", "correct"),
        (r"-1\frac{1}{2}", "-0.5", "wrong"),
        ("3 1/4", "31/4", "wrong"),
        (r"\frac34", r"\frac43", "wrong"),
        (r"\frac{x}{2}", "1/2x", "unknown"),
    ],
    "repeating decimals and rounding": [
        (r"0.\overline{142857}", "1/7", "correct"),
        ("0.(3)", r"\frac13", "correct"),
        (r"0.\overline{9}", "1", "correct"),
        (r"0.\overline{12}", r"\frac{12}{100}", "wrong"),
        (r"\frac{22}{7}", r"\pi", "wrong"),
        (r"\frac13", "0.33", "unknown"),
        ("(0.33, 1)", r"(\frac13, 1)", "unknown"),
        ("3.14", r"\pi", "unknown"),
    ],
    "scientific notation, huge and tiny": [
        (r"6.02\times10^{23}", "6.02e23", "correct"),
        (r"2^{100}", "1267650600228229401496703205376", "correct"),
        (r"2^{100}", "1267650600228229401496703205377", "wrong"),
        (r"3\cdot 10^{8}", r"3\times10^{7}", "wrong"),
        (r"10^{-7}\sqrt2", r"2\times10^{-7}\sqrt2", "wrong"),
        (r"\frac{1}{2004!}", r"\frac{1}{2006!}", "wrong"),
        ("(1e-7, 1)", "(2e-7, 1)", "wrong"),
    ],
    "points and lists": [
        (r"\left(3, \frac{\pi}{2}\right)", r"(3,\pi/2)", "correct"),
        (r"\langle 1, 2\rangle", "(1,2)", "correct"),
        ("(2,-1)", "y = -1, x = 2", "correct"),
        ("(2,-1)", "x = -1, y = 2", "wrong"),
        ("x=2, y=3", "x=3, y=2", "wrong"),
        ("(1,2)", "(2,1)", "wrong"),
        ("(1,2)", "2,1", "unknown"),
    ],
    "sets and several solutions": [
        (r"\{3,\frac12\}", r"\left\{0.5, 3\right\}", "correct"),
        (r"x=1\text{ or }x=2", "2, 1", "correct"),
        (r"1\pm\sqrt2", r"1-\sqrt2,\ 1+\sqrt2", "correct"),
        (r"x=\pm 3", r"3 \text{ and } -3", "correct"),
        (r"\pm 3", "3", "wrong"),
        ("5", "5, -5", "wrong"),
        (r"\{1,2,3\}", r"\{1,2\}", "wrong"),
        (r"\emptyset", r"\text{no solution}", "correct"),
        (r"\text{no solution}", "3", "wrong"),
        ("0", r"\text{no solution}", "unknown"),  # How many are there?
    ],
    "intervals and inequalities": [
        ("[0,0.5]", r"\left[0,\tfrac12\right]", "correct"),
        (r"(2,\infty)", r"\{x \mid x > 2\}", "correct"),
        (r"x<-2 \text{ or } x>2", r"(-\infty,-2)\cup(2,\infty)", "correct"),
        (r"\mathbb{R}", "all real numbers", "correct"),
        ("x > 2", r"x \ge 2", "wrong"),
        (r"(-\infty,2)", r"(-\infty,3)", "wrong"),
        (r"(0,1)\cup(1,2)", "(0,2)", "wrong"),
        ("x > 2", "y > 2", "unknown"),
    ],
    "matrices": [
        (r"\begin{pmatrix}1&\frac12\\3&4\end{pmatrix}", r"\begin{bmatrix}1&0.5\\3&4\end{bmatrix}", "correct"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}", "wrong"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}", "wrong"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", "correct"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{bmatrix} 1 \\ \frac{4}{2} \end{bmatrix}", "correct"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}", "wrong"),
    ],
    "equations and formulas": [
        ("x=3", "3", "correct"),
        ("y=2x+1", "2x-y+1=0", "correct"),
        ("y=2x+1", "2y=4x+2", "correct"),
        (r"\sin 2x", r"2\sin x\cos x", "correct"),
        (r"\frac{n(n+1)}{2}", r"\sum_{k=1}^{n}k", "correct"),
        (r"\sqrt{5+2\sqrt6}", r"\sqrt2+\sqrt3", "correct"),
        ("x=3", "x=-3", "wrong"),
        ("(a+b)^2", "a^2+b^2", "wrong"),
        ("f(x)=2x", "f(x)=3x", "wrong"),
        (r"\sqrt2+\sqrt3", r"\sqrt5", "wrong"),
        ("3+4i", "3-4i", "wrong"),
        ("2^n", "n^2", "wrong"),
        ("x^2+C", "x^2", "wrong"),
        ("(-1)^n", r"\cos(n\pi)", "unknown"),  # For whole n.
        ("|x|", "x", "unknown"),  # For positive x.
        ("n^2", "x^2", "unknown"),
    ],
    "angles": [
        (r"45^\circ", r"\frac{\pi}{4}", "correct"),
        (r"\sin 30^\circ", r"\frac12", "correct"),
        (r"45^\circ", r"\frac{\pi}{3}", "wrong"),
        (r"\frac12", r"\cos 60", "unknown"),
        (r"\angle ABC", r"\angle BAC", "unknown"),
    ],
    "words and choices": [
        (r"\text{twelve}", "12", "correct"),
        (r"\text{a circle}", "Circle", "correct"),
        (r"\textbf{(B)}\ 5", r"\text{Option B}", "correct"),
        (r"\text{Yes}", "No", "wrong"),
        (r"\text{increasing}", "decreasing", "wrong"),
        ("B", "(C) 5", "wrong"),
        (r"\text{two}", "3", "wrong"),
        ("true", "yes", "unknown"),
        ("101_2", "5", "unknown"),
    ],
}


@pytest.mark.parametrize(("gold", "found", "verdict"), [pair for pairs in PAIRS.values() for pair in pairs])
def test_hard_pairs(gold: str, found: str, verdict: str):
    decided = compare_exactly(gold, found) or math_worker.verify((gold, found))
    assert decided[0] == verdict, decided


@pytest.mark.parametrize("pair", [tuple(pair[:2]) for pairs in PAIRS.values() for pair in pairs])
def test_the_verdict_does_not_depend_on_which_is_the_label(pair: tuple[str, str]):
    forth, back = ((compare_exactly(*both) or math_worker.verify(both))[0] for both in (pair, (pair[1], pair[0])))
    assert forth == back


numbers = st.builds(Fraction, st.integers(-3000, 3000), st.integers(1, 60))


@settings(max_examples=30, deadline=None)
@given(numbers, numbers)
def test_every_notation_of_a_number_is_that_number_and_no_other(number: Fraction, other: Fraction):
    written, others = notations(number), notations(other)
    for form in written:
        for another in written:
            assert (compare_exactly(form, another) or [None])[0] == "correct", (form, another)
        if number != other:
            assert all((compare_exactly(form, another) or [None])[0] != "correct" for another in others)


def notations(number: Fraction) -> list[str]:
    """As a fraction in three ways, a mixed number, a decimal number with its period, an equation, and with a unit."""
    sign, size = "-" if number < 0 else "", abs(number)
    whole, rest = divmod(size.numerator, size.denominator)
    fraction = rf"{sign}\frac{{{size.numerator}}}{{{size.denominator}}}"
    forms = [fraction, f"{number}", f"x = {fraction}", f"${sign}{size}$ dollars", decimal(sign, whole, rest, size)]
    if whole and rest:
        forms += [rf"{sign}{whole}\frac{{{rest}}}{{{size.denominator}}}", f"{sign}{whole} {rest}/{size.denominator}"]
    return forms


def decimal(sign: str, whole: int, rest: int, size: Fraction) -> str:
    """By long division."""
    digits, seen = "", {}
    while rest and rest not in seen:
        seen[rest] = len(digits)
        digit, rest = divmod(rest * 10, size.denominator)
        digits += str(digit)
    if rest:
        digits = digits[: seen[rest]] + rf"\overline{{{digits[seen[rest] :]}}}"
    return f"{sign}{whole:,}" + ("." + digits if digits else "")
