"""The selection rules once more, answer by answer in plain Python: slow, and short enough to be checked by reading."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from data_pipeline.selection.rules import Parameters, Quantile

MASK = 2**64 - 1
Row = dict[str, Any]

REWARDLESS = {"no_reward", "non_finite_reward"}


@dataclass
class Outcome:
    """What is expected of the tables, as sets of plain rows."""

    sft: set[tuple[str, str, int]]
    """prompt, source, sample index."""
    dpo: set[tuple[str, str, int, str, int, float]]
    """prompt, source and sample index chosen, the same rejected, margin."""
    discarded: dict[str, tuple[str, str]]
    unused: list[tuple[str, str, int, str]]
    bounds: dict[str, tuple[float | None, float | None, int]]
    """Domain -> lower bound, upper bound, margins."""
    wrpo: set[tuple[str, str, int, str, int, str, int]] = field(default_factory=set)
    """prompt, source and sample index of the source's answer, the target's better and its worse one."""
    weights: dict[tuple[str, str, int], float] = field(default_factory=dict)
    """prompt, source and sample index of an example's answer, or of a pair's chosen one -> weight."""


def scrambled(*numbers: int) -> int:
    """Splitmix64 over the numbers in turn."""
    state = 0
    for number in numbers:
        state = ((state ^ number) + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state


def name_number(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") // 2


def select(prompts: list[Row], answers: list[Row], rules: Mapping[str, Parameters], seed: int) -> Outcome:
    """Goes through the prompts one by one, after it has seen the margins of all: of these quantiles are."""
    outcome = Outcome(set(), set(), {}, [], {})
    asked = []
    for prompt in prompts:
        mine = [answer for answer in answers if answer["prompt_id"] == prompt["id"]]
        asked.append(Prompt(prompt, mine, rules, seed, outcome))
    for domain, rule in rules.items():
        if rule.name != "one_source":
            margins = sorted(found for prompt in asked if prompt.domain == domain for found in prompt.margins())
            if rule.name in ("wrpo", "fuserl"):
                outcome.bounds[domain] = 1e-6, None, len(margins)
                continue
            low, high = (in_units(bound, margins) for bound in (rule.min_margin, rule.max_margin))
            outcome.bounds[domain] = low, high, len(margins)
    for prompt in asked:
        prompt.decide()
    known = {prompt["id"] for prompt in prompts}
    for answer in answers:
        if answer["prompt_id"] not in known:
            outcome.unused.append((answer["prompt_id"], answer["source"], answer["sample_index"], "no_such_prompt"))
    return outcome


def in_units(bound: float | Quantile | None, margins: list[float]) -> float | None:
    if not isinstance(bound, Quantile):
        return bound
    share = Fraction(str(bound.quantile)) * len(margins)
    return next((found for found in margins if sum(other <= found for other in margins) >= share), None)


class Prompt:
    """One prompt's way to an example, a pair, or the discarded."""

    def __init__(self, prompt: Row, answers: list[Row], rules: Mapping[str, Parameters], seed: int, outcome: Outcome):
        self.id, self.domain, self.seed, self.outcome = prompt["id"], prompt["domain"], seed, outcome
        self.rule: Any = rules[prompt["domain"]]
        self.answers, self.usable = answers, []
        for answer in answers:
            reason = self.unusable(answer)
            if reason is None:
                self.usable.append(answer)
            else:
                outcome.unused.append((self.id, answer["source"], answer["sample_index"], reason))

    def unusable(self, answer: Row) -> str | None:
        finish, reward = answer["finish_reason"], answer["reward"]
        names = (answer["source"], answer["sample_index"])
        if sum((other["source"], other["sample_index"]) == names for other in self.answers) > 1:
            return "repeated"
        if finish == "error":
            return "not_sampled"
        if answer["text_hash"] is None:
            return "empty"
        if finish == "length":
            return "truncated"
        if finish not in ("stop", None):
            return "not_finished"
        if answer["truncated"]:
            return "truncated"
        if answer["degenerate"]:
            return "degenerate"
        if reward is None:
            return None if self.rule.name == "one_source" else "no_reward"
        return None if math.isfinite(reward) else "non_finite_reward"

    def decide(self) -> None:
        if not self.answers:
            self.discard("sample", "no_answer")
        elif not self.usable:
            reasons = {self.unusable(answer) for answer in self.answers}
            if reasons & REWARDLESS:
                self.discard("score", "no_usable_reward")
            elif reasons == {"not_sampled"}:
                self.discard("sample", "no_answer")
            else:
                self.discard("sample", "no_usable_answer")
        elif self.rule.name == "margin":
            self.decide_by_margin()
        elif self.rule.name == "wrpo":
            self.decide_by_target()
        elif self.rule.name == "fuserl":
            self.decide_by_weights()
        elif self.rule.name == "one_source":
            wanted = [answer for answer in self.usable if self.rule.source in (None, answer["source"])]
            self.example(wanted) if wanted else self.discard("select", "no_answer_of_the_source")
        else:
            self.decide_by_verdict()

    def decide_by_margin(self) -> None:
        pairs, problems = self.pairs()
        if not pairs:
            self.discard("select", self.furthest(problems))
        elif self.for_sft():
            self.example(self.usable)
        else:
            self.pair(pairs)

    def for_sft(self) -> bool:
        return (scrambled(name_number(self.seed, self.id)) >> 11) / 2**53 < self.rule.sft_fraction

    def others(self) -> list[Row]:
        """What sources other than the target said."""
        return [answer for answer in self.usable if answer["source"] != self.rule.target]

    def decide_by_target(self) -> None:
        own = [answer for answer in self.usable if answer["source"] == self.rule.target]
        if not self.others():
            return self.discard("select", "no_answer_of_the_sources")
        if self.for_sft():
            return self.example(self.others())
        if self.rule.target is None:
            return self.discard("select", "awaits_the_target")
        if not own:
            return self.discard("select", "no_answer_of_the_target")
        pairs, problems = self.pairs()
        if not pairs:
            single = problems == ["one_answer"]
            return self.discard("select", "one_answer_of_the_target" if single else problems[0])
        triple = [self.ordered(self.others())[0], *pairs[0]]
        names = [value for answer in triple for value in (answer["source"], answer["sample_index"])]
        self.outcome.wrpo.add((self.id, *names))  # type: ignore[arg-type]
        return None

    def decide_by_weights(self) -> None:
        if self.for_sft():
            kept = self.ordered(self.usable)[: self.rule.top]
            self.outcome.sft |= {(self.id, answer["source"], answer["sample_index"]) for answer in kept}
            self.weigh(kept)
            return None
        pairs, problems = self.pairs()
        if not pairs:
            return self.discard("select", self.furthest(problems))
        for pair in pairs:
            self.pair([pair])
        self.weigh([chosen for chosen, _ in pairs])
        return None

    def weigh(self, answers: list[Row]) -> None:
        """A source counts by the best answer that it gave to the prompt."""
        best = {a["source"]: max(b["reward"] for b in self.usable if b["source"] == a["source"]) for a in answers}
        raw = [math.exp((best[a["source"]] - max(best.values())) / self.rule.temperature) for a in answers]
        for answer, value in zip(answers, raw, strict=True):
            self.outcome.weights[self.id, answer["source"], answer["sample_index"]] = value / math.fsum(raw)

    def furthest(self, problems: list[str]) -> str:
        order = ["one_answer", "equal_texts", "margin_too_small", "margin_too_wide"]
        problem = max(problems, key=order.index)
        rewardless = {self.unusable(answer) for answer in self.answers} & REWARDLESS
        return "one_reward" if problem == "one_answer" and rewardless else problem

    def decide_by_verdict(self) -> None:
        correct, _ = self.sides()
        if not correct:
            lost = {self.unusable(answer) for answer in self.answers if answer["verdict"] == "correct"}
            if lost:
                return self.discard("select", "correct_without_reward" if lost & REWARDLESS else "correct_unusable")
            refuted = any(answer["verdict"] == "wrong" for answer in self.usable)
            return self.discard("select", "no_correct_answer" if refuted else "no_verdict")
        pairs, _ = self.pairs()
        if pairs:
            self.pair(pairs)
        if self.rule.name == "verdict_both" or not pairs:
            self.example(correct)
        return None

    def discard(self, stage: str, reason: str) -> None:
        self.outcome.discarded[self.id] = stage, reason

    def tie(self, answer: Row) -> int:
        names = (self.id, answer["source"])
        return scrambled(*(name_number(self.seed, name) for name in names), answer["sample_index"])

    def ordered(self, answers: list[Row]) -> list[Row]:
        """Best first."""
        return sorted(answers, key=lambda a: (a["reward"] is None, -(a["reward"] or 0.0), self.tie(a)))

    def example(self, answers: list[Row]) -> None:
        best = self.ordered(answers)[0]
        self.outcome.sft.add((self.id, best["source"], best["sample_index"]))

    def sides(self) -> tuple[list[Row], list[Row]]:
        """What can be chosen, and what rejected."""
        if self.rule.name == "margin":
            return self.usable, self.usable
        if self.rule.name == "fuserl":
            return ([], []) if self.for_sft() else (self.usable, self.usable)
        if self.rule.name == "wrpo":
            own = [answer for answer in self.usable if answer["source"] == self.rule.target]
            return ([], []) if self.for_sft() or not self.others() else (own, own)
        correct = [answer for answer in self.usable if answer["verdict"] == "correct"]
        return correct, [answer for answer in self.usable if answer["verdict"] == "wrong"]

    def ends(self) -> list[tuple[Row, Row]]:
        """The best to choose and the worst to reject: of each source, or of all together."""
        winners, losers = self.sides()
        same_source = getattr(self.rule, "same_source", True)
        groups = sorted({answer["source"] for answer in winners}) if same_source else [None]
        found = []
        for source in groups:
            able = [self.ordered([a for a in side if source in (None, a["source"])]) for side in (winners, losers)]
            if able[0] and able[1]:
                found.append((able[0][0], able[1][-1]))
        return found

    def margins(self) -> list[float]:
        """Of two different answers each."""
        different = [(a, b) for a, b in self.ends() if a is not b and a["text_hash"] != b["text_hash"]]
        return [self.margin(*both) for both in different]

    def pairs(self) -> tuple[list[tuple[Row, Row]], list[str]]:
        """Valid pairs, at most one per group, and the problems of the other groups."""
        pairs, problems = [], []
        low, high, _ = self.outcome.bounds[self.domain]
        for chosen, rejected in self.ends():
            margin = self.margin(chosen, rejected)
            if chosen is rejected:
                problems.append("one_answer")
            elif chosen["text_hash"] == rejected["text_hash"]:
                problems.append("equal_texts")
            elif low is not None and margin < low:
                problems.append("margin_too_small")
            elif high is not None and margin > high:
                problems.append("margin_too_wide")
            else:
                pairs.append((chosen, rejected))
        return pairs, problems

    @staticmethod
    def margin(chosen: Row, rejected: Row) -> float:
        return round(chosen["reward"] - rejected["reward"], 6)

    def pair(self, pairs: list[tuple[Row, Row]]) -> None:
        def order(pair: tuple[Row, Row]) -> tuple[float, ...]:
            reward, margin = pair[0]["reward"], self.margin(*pair)
            by = getattr(self.rule, "pair_source", "best")
            first = {"best": (-reward, -margin), "widest": (-margin, -reward), "random": ()}[by]
            return (*first, scrambled(self.tie(pair[0]), self.tie(pair[1])))

        chosen, rejected = min(pairs, key=order)
        ends = [value for answer in (chosen, rejected) for value in (answer["source"], answer["sample_index"])]
        self.outcome.dpo.add((self.id, *ends, self.margin(chosen, rejected)))  # type: ignore[arg-type]
