"""Real text to compare models on: English of the documentation, code of the trainer, and some Chinese."""

from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

CHINESE = """\
周末的早晨，老城区的茶馆刚刚开门，第一批客人就已经坐在靠窗的位置上了。他们大多是退休的老人，手里拿着当天的报纸，一边喝茶一边谈论最近的新闻。\
掌柜的女儿今年考上了大学，学的是计算机科学，放假回来便在店里帮忙。有人问她，机器会不会有一天也能泡出一壶好茶？她想了想，笑着回答：\
“水温和时间可以测量，可是客人今天心情怎么样，只有看着他的脸才知道。”

要训练一个小模型，首先需要好的数据。我们让几个大模型回答同一个问题，再用奖励模型给每个答案打分，留下最好的作为示范，把最好和最差的配成一对，\
教小模型分辨好坏。这样做的好处是：不同的模型各有所长，有的擅长数学，有的擅长写程序，有的写文章更自然，小模型可以从每一个老师那里学到一点东西。\
当然，也有困难的地方。如果评分的标准偏爱长的答案，小模型很快就会学会啰嗦；如果数据里混进了考试题目，最后的成绩也就说明不了什么。

北方的冬天来得很早，十一月初湖面就结了一层薄冰。孩子们放学以后喜欢到湖边扔石子，听冰面发出清脆的响声。奶奶总是站在远处喊：“别走上去，冰还没有冻结实！”\
到了腊月，冰终于厚得可以走人，村里的人便在湖上凿洞捕鱼。晚上，一家人围着炉子，锅里炖着白菜、豆腐和刚捕上来的鱼，窗外的雪下得又大又静。

问：一列火车上午九点十五分从甲城出发，以每小时一百二十公里的速度开往三百公里以外的乙城，途中停车两次，每次十分钟，请问什么时候到达？\
答：行驶需要三百除以一百二十，也就是两个半小时；停车一共二十分钟。九点十五分加上两小时五十分钟，到达时间是十二点零五分。
"""

# Tokens of each text; those of one kind follow each other in their source.
LENGTHS = {
    "english": (2048, 700, 512, 400, 150, 64, 32, 17),
    "code": (1024, 600, 400, 256, 128, 100, 50, 20),
    "chinese": (220, 130, 60, 25),
}


def sources() -> dict[str, str]:
    """Kind of text -> much of it."""
    english = sorted((ROOT / "docs").glob("*.md"))
    code = sorted((ROOT / "fusejax" / "training").glob("*.py"))
    join = "\n".join
    return {
        "english": join(path.read_text() for path in english if path.name != "configuration.md"),
        "code": join(path.read_text() for path in code),
        "chinese": CHINESE,
    }


def twenty(tokenizer) -> list[list[int]]:
    """Token ids of twenty texts of up to 2,048 tokens, each as the tokenizer begins a text."""
    found = []
    begin = tokenizer("")["input_ids"]
    for kind, text in sources().items():
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(ids) >= sum(LENGTHS[kind]), f"too little {kind}: {len(ids)} tokens"
        for length in LENGTHS[kind]:
            take = length - len(begin)
            found.append([*begin, *ids[:take]])
            ids = ids[take:]
    return found


def packed(texts: Sequence[list[int]], length: int) -> list[list[int]]:
    """Indices of texts for each row of `length` tokens, first fit."""
    rows: list[list[int]] = []
    for index in sorted(range(len(texts)), key=lambda i: -len(texts[i])):
        for row in rows:
            if sum(len(texts[i]) for i in row) + len(texts[index]) <= length:
                row.append(index)
                break
        else:
            rows.append([index])
    return rows
