"""Models of one architecture, trained from one pivot, made into one without training."""
