"""Real models on real data, each example with a README and one command."""
