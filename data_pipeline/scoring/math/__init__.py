"""Final answers judged against labels: `math_answers` finds, `math_compare` compares, formulas in `math_worker`."""
