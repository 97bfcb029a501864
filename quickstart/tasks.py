"""Four small domains that a model of two hundred thousand parameters can learn in a minute.

Every task needs a few *skills*: the facts that it asks for, the sums in it, the expression that it comes down to.
Training and held-out tasks need the same skills, but never in the same combination: a hash of the combination
decides which side it belongs to, so the two sides are disjoint for every seed. A model that only memorises whole
answers scores nothing on the held-out side.

    instruction  two facts in a demanded layout           "Name the capital of Peru and the opposite of hot ..."
    math         a word problem in two steps, boxed       "Mia has 7 pens, buys 2 more, then gives 3 away ..."
    code         a Python function, judged by running it  "Write a function `grow(xs)` that returns the sum of ..."
    chinese      two facts, asked and answered in Chinese "秘鲁的首都和热的反义词是什么？"

Each skill comes with one misconception that models can share, as they do: the capital of another country, a sum that
is off by one. So a model's knowledge is the set of skills that it has mastered, and unequal teachers are easily made.
"""

import dataclasses
import random
import zlib
from collections.abc import Callable, Set
from typing import Literal

Domain = Literal["instruction", "math", "code", "chinese"]
Split = Literal["train", "heldout"]
DOMAINS: tuple[Domain, ...] = ("instruction", "math", "code", "chinese")

# One combination in this many is kept for the evaluation.
HELDOUT_SHARE = 5


@dataclasses.dataclass(frozen=True)
class Task:
    """One prompt and what is needed to answer and judge it.

    Attributes:
      domain: one of `DOMAINS`.
      prompt: the user's turn.
      skills: what a right reply needs.
      reply: from the skills that are got wrong to the reply; with none of them, the right reply.
      answer: what a verifier compares with, where replies are not run: the two facts laid out, or the number.
      tests: assert statements, for code.
    """

    domain: Domain
    prompt: str
    skills: tuple[str, ...]
    reply: Callable[[Set[str]], str]
    answer: str | None
    tests: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        """The right reply."""
        return self.reply(frozenset())

    def record(self, task_id: str) -> dict[str, object]:
        """The data pipeline's prompt columns."""
        return {
            "id": task_id,
            "dataset": f"quickstart-{self.domain}",
            "domain": self.domain,
            "messages": [{"role": "user", "content": self.prompt}],
            "answer": self.answer,
            "tests": list(self.tests) or None,
        }


def draw(domain: Domain, split: Split, count: int, key: str) -> list[Task]:
    """`count` distinct tasks of one side of one domain; a longer draw begins with the shorter one.

    Args:
      domain: which generator.
      split: which combinations.
      count: how many.
      key: seeds the draw; other keys give other tasks.

    Raises:
      ValueError: the domain has fewer combinations than that.
    """
    generator = random.Random(f"{key}/{split}/{domain}")
    drawn: dict[str, Task] = {}
    for _ in range(100 * count):
        combination, task = _GENERATORS[domain](generator)
        heldout = zlib.crc32(repr((domain, combination)).encode()) % HELDOUT_SHARE == 0
        if heldout == (split == "heldout"):
            drawn.setdefault(task.prompt, task)
        if len(drawn) == count:
            return list(drawn.values())
    raise ValueError(f"{domain}/{split} has only {len(drawn)} of {count} tasks")


def skills(domain: Domain) -> list[str]:
    """All skills of a domain."""
    return _SKILLS[domain]()


# --- instruction and Chinese: facts ---------------------------------------------------------------------------------

Facts = dict[str, dict[str, str]]

ENGLISH: Facts = {
    "the capital of": {
        "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo", "Peru": "Lima",
        "Cuba": "Havana", "Kenya": "Nairobi", "Norway": "Oslo", "Greece": "Athens", "Iran": "Tehran",
        "Chile": "Santiago",
    },
    "the opposite of": {
        "hot": "cold", "big": "small", "fast": "slow", "old": "new", "rich": "poor", "hard": "soft",
        "wet": "dry", "high": "low", "early": "late", "full": "empty", "light": "dark", "long": "short",
    },
    "the colour of": {
        "snow": "white", "grass": "green", "blood": "red", "coal": "black", "gold": "yellow", "the sky": "blue",
        "chocolate": "brown", "a carrot": "orange", "a plum": "purple", "ash": "grey", "a flamingo": "pink",
        "ivory": "cream",
    },
    "the past tense of": {
        "go": "went", "see": "saw", "eat": "ate", "give": "gave", "take": "took", "write": "wrote",
        "sing": "sang", "buy": "bought", "find": "found", "run": "ran", "speak": "spoke", "fly": "flew",
    },
    "the young of": {
        "a cow": "calf", "a dog": "puppy", "a cat": "kitten", "a sheep": "lamb", "a horse": "foal", "a bear": "cub",
        "a deer": "fawn", "a goat": "kid", "a hen": "chick", "a duck": "duckling", "a goose": "gosling",
        "a frog": "tadpole",
    },
}  # fmt: skip

CHINESE: Facts = {
    "首都": {
        "法国": "巴黎", "意大利": "罗马", "西班牙": "马德里", "日本": "东京", "埃及": "开罗", "秘鲁": "利马",
        "古巴": "哈瓦那", "挪威": "奥斯陆", "希腊": "雅典", "英国": "伦敦", "德国": "柏林", "泰国": "曼谷",
    },
    "反义词": {
        "热": "冷", "大": "小", "快": "慢", "新": "旧", "穷": "富", "硬": "软",
        "湿": "干", "高": "低", "早": "晚", "满": "空", "长": "短", "远": "近",
    },
    "颜色": {
        "雪": "白", "草": "绿", "血": "红", "煤": "黑", "金子": "黄", "天空": "蓝",
        "咖啡": "棕", "橙子": "橙", "茄子": "紫", "灰烬": "灰", "桃花": "粉", "树叶": "青",
    },
    "量词": {
        "马": "匹", "鱼": "条", "书": "本", "车": "辆", "树": "棵", "花": "朵",
        "笔": "支", "纸": "张", "船": "艘", "山": "座", "灯": "盏", "刀": "把",
    },
}  # fmt: skip

# How the reply is to be laid out: what the prompt asks for, and the two facts so laid out.
ENGLISH_LAYOUTS = {
    "with a comma": "{0}, {1}",
    "as a list": "- {0}\n- {1}",
    "as a sentence": "They are {0} and {1}.",
}
CHINESE_LAYOUT = "{0}，{1}。"


def _two_facts(generator: random.Random, facts: Facts) -> list[tuple[str, str]]:
    """Two pairs (relation, thing), of different relations."""
    return [(relation, generator.choice(list(facts[relation]))) for relation in generator.sample(list(facts), 2)]


def _reply_with_facts(facts: Facts, asked: list[tuple[str, str]], layout: str) -> Callable[[Set[str]], str]:
    def reply(mistaken: Set[str]) -> str:
        return layout.format(
            *(
                _next(facts[relation], thing) if f"{relation} {thing}" in mistaken else facts[relation][thing]
                for relation, thing in asked
            )
        )

    return reply


def _next(facts: dict[str, str], thing: str) -> str:
    """The misconception about a fact: the value of the next thing in the table."""
    things = list(facts)
    return facts[things[(things.index(thing) + 1) % len(things)]]


def _instruction(generator: random.Random) -> tuple[object, Task]:
    asked = _two_facts(generator, ENGLISH)
    demand, layout = generator.choice(list(ENGLISH_LAYOUTS.items()))
    reply = _reply_with_facts(ENGLISH, asked, layout)
    first, second = skills = tuple(f"{relation} {thing}" for relation, thing in asked)
    task = Task("instruction", f"Name {first} and {second} {demand}.", skills, reply, answer=reply(frozenset()))
    return sorted(skills), task


def _chinese(generator: random.Random) -> tuple[object, Task]:
    asked = _two_facts(generator, CHINESE)
    reply = _reply_with_facts(CHINESE, asked, CHINESE_LAYOUT)
    skills = tuple(f"{relation} {thing}" for relation, thing in asked)
    prompt = "和".join(f"{thing}的{relation}" for relation, thing in asked) + "是什么？"
    return sorted(skills), Task("chinese", prompt, skills, reply, answer=reply(frozenset()))


def _fact_skills(facts: Facts) -> list[str]:
    return [f"{relation} {thing}" for relation, things in facts.items() for thing in things]


# --- mathematics ----------------------------------------------------------------------------------------------------

NAMES = ("Mia", "Tom", "Ann", "Ben", "Eva", "Leo", "Ida", "Max")
OBJECTS = ("pens", "books", "coins", "cards", "shells", "stamps", "apples", "stones")
GAINS = ("buys {} more", "finds {} more", "gets {} more")
LOSSES = ("gives {} away", "loses {}", "sells {}")


def _math(generator: random.Random) -> tuple[object, Task]:
    while True:
        start, changes = generator.randint(1, 9), [generator.randint(1, 3) for _ in range(2)]
        signs = [generator.choice("+-") for _ in changes]
        sums, result = _working(start, signs, changes, frozenset())
        if all(0 <= _value(each) <= 9 for each in sums):
            break
    name, things = generator.choice(NAMES), generator.choice(OBJECTS)
    told = [
        generator.choice(GAINS if sign == "+" else LOSSES).format(change)
        for sign, change in zip(signs, changes, strict=True)
    ]

    def reply(mistaken: Set[str]) -> str:
        steps, total = _working(start, signs, changes, mistaken)
        return ", ".join(f"{each} = {value}" for each, value in steps.items()) + f". \\boxed{{{total}}}"

    prompt = f"{name} has {start} {things}, {told[0]}, then {told[1]}. How many {things} are there now?"
    return (start, *signs, *changes), Task("math", prompt, tuple(sums), reply, answer=str(result))


def _working(start: int, signs: list[str], changes: list[int], mistaken: Set[str]) -> tuple[dict[str, int], int]:
    """The steps, as sum -> value, and the last value. Later steps carry on from a mistaken value."""
    steps, total = {}, start
    for sign, change in zip(signs, changes, strict=True):
        step = f"{total} {sign} {change}"
        total = _value(step)
        if step in mistaken:
            total = _misconceived(step, total)
        steps[step] = total
    return steps, total


def _misconceived(step: str, total: int) -> int:
    """A wrong value close by, above as often as below: else pairs would teach that smaller numbers are better."""
    near = [total + slip for slip in (-2, -1, 1, 2) if 0 <= total + slip <= 9]
    return near[zlib.crc32(step.encode()) % len(near)]


def _value(step: str) -> int:
    left, sign, right = step.split()
    return int(left) + int(right) if sign == "+" else int(left) - int(right)


def _math_skills() -> list[str]:
    sums = [f"{left} {sign} {right}" for left in range(10) for sign in "+-" for right in range(1, 4)]
    return [each for each in sums if 0 <= _value(each) <= 9]


# --- code -----------------------------------------------------------------------------------------------------------

FUNCTIONS = ("grow", "pick", "solve", "count", "find", "work", "make", "run")
AGGREGATES = {
    "the sum of": "sum({})",
    "the largest of": "max({})",
    "the smallest of": "min({})",
    "the number of": "len({})",
    "the first of": "{}[0]",
    "the last of": "{}[-1]",
    "the range of": "max({0}) - min({0})",
    "the average of": "sum({0}) / len({0})",
}
# The misconception about a filter is the next one in the table; no aggregate gives the same result for both.
FILTERS = {
    "all numbers": "xs",
    "the odd numbers": "[x for x in xs if x % 2 == 1]",
    "the positive numbers": "[x for x in xs if x > 0]",
    "the negative numbers": "[x for x in xs if x < 0]",
    "the numbers above 3": "[x for x in xs if x > 3]",
    "the numbers below 2": "[x for x in xs if x < 2]",
    "the even numbers": "[x for x in xs if x % 2 == 0]",
}
FINISHES = {"plus": "+", "minus": "-", "times": "*"}
# Every filter leaves at least two numbers of each list, and each filter's misconception gives other values.
TEST_LISTS = ([-9, 7, 9, 3, 12, -8, -4], [2, -9, 10, 9, -5, -1, 1], [11, -4, -8, -1, -5, 10, 2])


def _code(generator: random.Random) -> tuple[object, Task]:
    aggregate, kept = generator.choice(list(AGGREGATES)), generator.choice(list(FILTERS))
    finish, number = generator.choice(list(FINISHES)), generator.randint(2, 9)
    function, skill = generator.choice(FUNCTIONS), f"{aggregate} {kept}"

    def reply(mistaken: Set[str]) -> str:
        # The misconception: the filter is taken for its neighbour in the table.
        names = list(FILTERS)
        used = names[(names.index(kept) + 1) % len(names)] if skill in mistaken else kept
        return f"```python\ndef {function}(xs):\n    return {_expression(aggregate, used, finish, number)}\n```"

    expression = _expression(aggregate, kept, finish, number)
    task = Task(
        domain="code",
        prompt=f"Write a function `{function}(xs)` that returns {skill} in xs, {finish} {number}.",
        skills=(skill,),
        reply=reply,
        answer=None,
        tests=tuple(f"assert {function}({xs}) == {eval(expression, {'xs': xs})!r}" for xs in TEST_LISTS),
    )
    return (skill, finish, number), task


def _expression(aggregate: str, kept: str, finish: str, number: int) -> str:
    value = AGGREGATES[aggregate].format(FILTERS[kept])
    if finish == "times" and " " in AGGREGATES[aggregate]:
        value = f"({value})"
    return f"{value} {FINISHES[finish]} {number}"


def _code_skills() -> list[str]:
    return [f"{aggregate} {kept}" for aggregate in AGGREGATES for kept in FILTERS]


_GENERATORS: dict[Domain, Callable[[random.Random], tuple[object, Task]]] = {
    "instruction": _instruction,
    "math": _math,
    "code": _code,
    "chinese": _chinese,
}
_SKILLS: dict[Domain, Callable[[], list[str]]] = {
    "instruction": lambda: _fact_skills(ENGLISH),
    "math": _math_skills,
    "code": _code_skills,
    "chinese": lambda: _fact_skills(CHINESE),
}
