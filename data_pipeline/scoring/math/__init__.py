"""Final answers judged against gold answers: `math_answers` finds, `math_compare` compares, if need be in `math_worker`."""
