"""The benchmarks, each in a file of its own, and what some of them share."""
