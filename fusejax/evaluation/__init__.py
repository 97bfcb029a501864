"""How good a model is on held-out prompts: its greedy answers, judged by the data pipeline's scorers."""
