"""Final answers judged against the gold answer: `scorer` asks `math_worker` processes, which compare `math_answers`."""
