"""Whether a prompt asks for code or mathematics, judging by its text, for data sets that do not label their rows.

The recipe leaves both topics out of the instruction and Chinese sets and does not say how. These are rules that a
person can read: a rejected prompt is kept with the words that matched, so that a wrong rule shows.
"""

import re

from data_pipeline.prompts.adapters.base import Rejected

_LANGUAGES = (
    r"python|java ?script|typescript|java|golang|kotlin|php|ruby on rails|matlab|sql|mysql|postgresql|mongodb|html5?|"
    r"css3?|bash|powershell|vba|django|flask|react(?:\.?js| native)|node\.?js|vue\.?js|jquery|numpy|tensorflow|"
    r"pytorch|docker|kubernetes|solidity|fortran|verilog|arduino|opencv|leetcode|stack overflow"
)
_WRITE = (
    r"write|create|implement|develop|design|build|generate|provide|complete|fix|debug|refactor|optimi[sz]e",
    r"code|programs?|functions?|query|queries|algorithm|regex|regular expression|unit tests?|api",
)
_CODE = (
    r"```",
    rf"\b(?:{_WRITE[0]})\b[^.?!\n]{{0,60}}\b(?:{_WRITE[1]})\b(?! of (?:conduct|ethics))",
    rf"\b(?:{_LANGUAGES})\b|\bc\+\+|\bc#|\.net\b",
    r"\b(?:source code|pseudo-?code|code snippet|programming language|compil(?:er|e) error|data structures?)\b",
    r"^\s*(?:def \w+\(|class \w+[(:{]|#include\s*<|import \w+(?:\.\w+)*;?$|from [\w.]+ import )",
    r"^\s*(?:using namespace |public (?:static|class) )",
    r"\bselect\b.{1,200}\bfrom\b.{1,80}\b(?:where|join|group by|order by)\b",
    r"</?(?:div|span|script|html|body|table|input)\b",
    r"代码|编程|数据结构|正则表达式|编译|程序设计|源码|写[^。?\n]{0,20}(?:程序|函数|脚本|算法|查询)",
    r"(?:python|java(?:script)?|c\+\+|sql|html|css)(?=[\u4e00-\u9fff])",
)
_TASKS = (
    r"solve|simplify|factori[sz]e|evaluate|differentiate|integrate",
    r"equations?|inequalit\w+|expressions?|polynomials?|integrals?|for [a-z]",
)
_QUANTITIES = (
    r"calculate|compute|find|determine|what is|what's",
    r"area|volume|perimeter|circumference|radius|hypotenuse|slope|derivative|integral|determinant|eigenvalues?|"
    r"probability|standard deviation|variance|median|mean|square root|remainder|percentage|sum|product|average|gcd|"
    r"lcm|greatest common|least common|interest rate|total cost|ratio",
)
_SUBJECTS = (
    r"quadratic|polynomial|trigonometr\w+|logarithm\w*|calculus|algebra\w*|geometry|theorem|arithmetic|prime numbers?|"
    r"fibonacci|math(?:s|ematics|ematical)? (?:problems?|questions?|equations?)"
)
_NUMBER = r"\(?-?\d+(?:\.\d+)?(?![\w/-])"
_MATH = (
    r"\\(?:frac|sqrt|sum|int|lim|cdot|times|boxed|theta|pi\b|angle|triangle|leq?|geq?)",
    r"\$[^$\n]{0,80}[=^+\\][^$\n]{0,80}\$",
    rf"(?<![\w/-])\d+(?:\.\d+)?(?:\s*[*×÷^=+]\s*|\s+[-/]\s+){_NUMBER}",
    r"\b[a-z]\s*(?:\^\s*\d|²|³)|\b\d*[xyz]\s*[-+=]\s*\d|\bf\(x\)",
    rf"\b(?:{_TASKS[0]})\b[^.?!\n]{{0,40}}\b(?:{_TASKS[1]})\b",
    rf"\b(?:{_QUANTITIES[0]})\b[^.?!\n]{{0,40}}\b(?:{_QUANTITIES[1]})\b",
    rf"\b(?:{_SUBJECTS})\b|\bprobability (?:that|of)\b",
    r"方程|微积分|导数|概率|几何(?!图案)|代数|矩阵|三角函数|平方根|立方根|最大公约数|最小公倍数|质数|素数|因式分解|等差数列|等比数列|数学题|勾股定理",
    r"(?:计算|求)[^。?\n]{0,20}(?:面积|体积|周长|平均数|平均值|总和|之和|乘积|余数|百分比|利息|的值|方差|中位数)|等于多少",
)
# A word problem: two quantities, and a question for a third.
_AMOUNT = r"how (?:many|much|long|far|old|fast)|what (?:is|was|will be) the (?:total|number|amount|cost|price|value)"
_WORD_PROBLEM = re.compile(
    rf"\d[^?]*\d[^?]*\b(?:{_AMOUNT})\b|\d[^?]*\d[^?]*(?:多少|几[个只本元天岁])", re.IGNORECASE | re.DOTALL
)
LONGEST_WORD_PROBLEM = 1500
"""Characters. In longer texts, numbers and questions need not belong together."""


def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE | re.MULTILINE)


_CODE_PATTERN, _MATH_PATTERN = _any_of(_CODE), _any_of(_MATH)


def refuse_code_and_math(text: str) -> None:
    """Returns if the text asks for neither.

    >>> refuse_code_and_math("Why is the sky blue?")

    Raises:
      Rejected: `topic_code` or `topic_math`, with the words that say so.
    """
    if match := _CODE_PATTERN.search(text):
        raise Rejected("topic_code", match[0].strip()[:80])
    match = _MATH_PATTERN.search(text)
    if not match and len(text) <= LONGEST_WORD_PROBLEM:
        match = _WORD_PROBLEM.search(text)
    if match:
        raise Rejected("topic_math", match[0].strip()[-80:])
