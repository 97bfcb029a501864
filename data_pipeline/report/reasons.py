"""Every reason that the pipeline gives, explained in words, grouped by what it applies to."""

from collections.abc import Mapping
from types import MappingProxyType

RECORDS = {
    "bad_answer": "the right answer is not text",
    "bad_json": "the line is not valid JSON",
    "bad_messages": "not a list of turns with known roles",
    "bad_tests": "the tests are not a list of texts",
    "bad_unicode": "the text is not valid Unicode",
    "changes_in_place": "asks to change an argument in place, which tests of results cannot see",
    "contaminated": "an evaluation set holds part of it",
    "duplicate_id": "an earlier record has the same id",
    "duplicate_prompt": "an earlier record has the same conversation",
    "low_quality": "its data set rates it as poor",
    "many_answers": "several results would be right, but the tests know one",
    "near_duplicate": "closely resembles an earlier prompt",
    "no_answer": "has no right answer to compare with",
    "no_prompt": "has no prompt, or a blank one",
    "no_reference_function": "has no solution that shows how the function is called",
    "no_tests": "has no tests to run",
    "no_user_turn": "does not end with a turn of the user",
    "not_an_object": "the line is JSON, but not an object",
    "not_chinese": "has no Chinese characters",
    "over_limit": "more than the configuration asks for",
    "tests_check_nothing": "the tests would pass for any program",
    "tests_need_nodes": "about lists or trees of nodes, which plain tests cannot build",
    "topic_code": "about code, in a data set of other tasks",
    "topic_math": "about mathematics, in a data set of other tasks",
}
"""Why a record became no prompt."""
ANSWERS = {
    "degenerate": "caught in a loop",
    "empty": "blank, or a thought with no answer after it",
    "no_reward": "nothing gave it a reward",
    "no_such_prompt": "answers a prompt that is not in the table",
    "no_weight": "so far below the best source that its weight would be 0",
    "non_finite_reward": "its reward is not a finite number",
    "not_finished": "did not come to its end",
    "not_sampled": "could not be sampled",
    "repeated": "two answers bear the same names, so neither is sure",
    "truncated": "cut off at the limit of tokens",
}
"""Why an answer can serve nowhere."""
PROMPTS = {
    "awaits_the_target": "kept for the second round, in which the target answers it too",
    "correct_unusable": "its correct answers are cut off, flawed or there twice",
    "correct_without_reward": "a correct answer has no reward to go by",
    "equal_texts": "the best and the worst answer have the same text",
    "margin_too_small": "best and worst answer are too close in reward",
    "margin_too_wide": "best and worst answer are too far apart in reward",
    "no_answer": "no source answered it",
    "no_answer_of_the_source": "the source that the rule takes gave no usable answer",
    "no_answer_of_the_sources": "no source but the target gave a usable answer",
    "no_answer_of_the_target": "the target gave no usable answer",
    "no_correct_answer": "no answer is known to be correct, and some are wrong",
    "no_usable_answer": "every answer is blank, cut off, flawed or there twice",
    "no_usable_reward": "no answer that was sampled has a reward to go by",
    "no_verdict": "no answer is known to be correct or wrong",
    "one_answer": "no two usable answers of one source, so there is nothing to compare",
    "one_answer_of_the_target": "the target gave one usable answer, with nothing to compare",
    "one_reward": "no two answers of one source have a reward to compare",
}
"""Why no rule could use a prompt's answers."""
SCORES = {
    # Answers that no scorer saw.
    "no_such_prompt": "answers a prompt that is not in the table",
    "not_sampled": "there is no answer to judge",
    # Rewards.
    "bad_reward": "the data set's reward is not a finite number",
    "bad_verdict": "a verdict that does not exist",
    "chat_template": "the reward model's chat template refuses the conversation",
    "empty_answer": "there is no text to judge",
    "missing_reward": "the data set has no reward there",
    "missing_verdict": "the data set has no verdict there",
    "no_gating_pattern": "the reward model cannot tell where the answer begins",
    "reward_failed": "the reward function raised an error",
    "several_rewards": "the data set has this answer several times, with different rewards",
    "several_verdicts": "the data set has this answer several times, with different verdicts",
    "verifier_failed": "your verifier raised an error",
    # Judging in worker processes.
    "crashed": "the comparison crashed",
    "out_of_memory": "the comparison took more memory than allowed",
    "timeout": "took longer than allowed",
    "too_long": "too long to be judged",
    # Final answers in mathematics.
    "ambiguous_notation": "the notation can be read in two ways",
    "answer_not_parsed": "the answer could not be read as a formula",
    "checks_disagree": "two ways of comparing disagree",
    "choice_against_answer": "a letter of a choice against something else",
    "decimal_comma": "commas and points may separate decimals, thousands or values",
    "degrees_against_number": "degrees against a plain number",
    "equation_against_value": "an equation against what may be one of its sides",
    "identity": "an equation that holds for all values of its letters",
    "label_not_parsed": "the right answer could not be read as a formula",
    "math_verify": "compared as formulas",
    "math_verify_failed": "comparing as formulas raised an error",
    "names_missing": "named values against values without their names",
    "no_final_answer": "the text states no final answer",
    "not_a_formula": "prose, or several numbers side by side",
    "not_checked": "no values could be put in to check",
    "not_compared": "was not compared",
    "not_comparable": "two kinds of things that cannot be compared",
    "other_choice": "another letter of the choice",
    "other_count": "more or fewer values than the right answer",
    "other_names": "the names of the values differ",
    "other_number": "another number",
    "other_quantity": "another quantity",
    "other_set": "another set of numbers",
    "other_shape": "another number of rows or columns",
    "other_subscripts": "subscripts, or bases of numbers, differ",
    "other_time": "another time",
    "other_units": "the units differ",
    "other_value": "another value",
    "other_variables": "the letters differ",
    "other_words": "other words",
    "rounded": "equal but for rounding",
    "same_choice": "the same letter of the choice",
    "same_number": "the same number",
    "same_percentage": "the same percentage",
    "same_quantity": "the same quantity in other units",
    "same_set": "the same set of numbers",
    "same_text": "the same text",
    "same_time": "the same time",
    "same_value": "the same value",
    "same_values": "the same values",
    "same_words": "the same words",
    "share_or_percentage": "either a share or a percentage",
    "tuple_against_list": "values in order against a list",
    "unclear_answer": "it is not clear which number is the answer",
    "words_against_formula": "words against a formula",
    # Programs and their tests.
    "bad_test": "the tests themselves are broken",
    "compared_by_the_program": "the program compared the result itself, which proves nothing",
    "output_limit": "the program printed more than is read",
    "wrong_output": "the program printed something else than it should",
    "disk_limit": "wrote more files than allowed",
    "ended_early": "the program ended before its tests did",
    "error": "raised an error before any test ran",
    "examiner_ended": "the process that runs the tests ended",
    "examiner_memory": "the tests took more memory than allowed",
    "failed_test": "a test failed",
    "import_not_allowed": "imports a module that the sandbox does not have",
    "misbehaved": "broke the rules between program and tests",
    "code_not_found": "the answer defines something, but the program cannot be told from the text",
    "several_programs": "it defines twice what is tested, the last time with a syntax error",
    "no_code": "there is no program in the text",
    "no_tests": "there are no tests to run",
    "passed": "every test passed",
    "reads_the_tests": "reads what the tests expect",
    "sandbox_ended": "the sandbox ended",
    "sandbox_failed": "the sandbox could not be closed",
    "shadows_builtin": "redefines a function of Python that the tests use",
    "syntax_error": "not valid Python",
    "tests_check_nothing": "the tests would pass for any program",
    "tests_timeout": "the tests themselves took too long",
    "undecidable": "the tests need what cannot be asked from outside",
    "undefined_name": "uses a name that nothing defines",
    "wall_timeout": "took too long on a machine that may have been busy",
}
"""Why a reward or a verdict is as it is."""
ROWS = {
    "bad_json": "the line is not valid JSON",
    "bad_score": "a score is not a finite number",
    "bad_unicode": "the text is not valid Unicode",
    "bad_weight": "its weight is not a number above 0",
    "contaminated": "an evaluation set holds part of it",
    "duplicate": "an earlier row says the same",
    "empty_turn": "a turn is blank",
    "equal_answers": "the chosen and the rejected answer are the same",
    "near_duplicate": "closely resembles an earlier row",
    "no_assistant_turn": "the assistant says nothing",
    "no_prompt": "has no prompt, or a blank one",
    "no_turns": "holds no list of turns with a role and content",
    "not_an_object": "is JSON, but not an object",
    "not_for_training": "marks a turn that is not to be trained on",
    "not_text": "holds something else than text",
    "not_two_answers": "chosen holds other turns than two of the assistant",
    "over_limit": "more than the configuration asks for",
    "over_weight": "more than its weight in the mixture allows",
    "prompts_differ": "the answers begin with different prompts",
    "too_many_cells": "has more cells than there are columns",
    "tool_use": "calls a tool",
    "turn_order": "the roles do not take turns, beginning with the user",
    "unknown_role": "a role that is neither system, user nor assistant",
}
"""Why an imported row became no record."""
WORDS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {"record": RECORDS, "answer": ANSWERS, "prompt": PROMPTS, "score": SCORES, "row": ROWS}
)
"""What a reason applies to -> reason -> its explanation."""


def words(kind: str, reason: str) -> str:
    """What a reason means; "" for one that is not the pipeline's own.

    Args:
      kind: a key of `WORDS`.
      reason: only the part before a colon counts: `contaminated: GSM8K`.

    >>> words("prompt", "margin_too_small"), words("score", "a scorer of one's own")
    ('best and worst answer are too close in reward', '')
    """
    return WORDS[kind].get(reason.partition(":")[0], "")
