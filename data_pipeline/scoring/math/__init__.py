"""Final answers judged against gold answers: `math_answers` reads, `scorer` compares, if need be in `math_worker`."""
