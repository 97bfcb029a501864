"""The training loop and what it holds: state, step, optimizer, checkpoints, reference pass, metrics."""
