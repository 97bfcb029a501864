"""Plans a run for a TPU slice without a TPU: compiles its programs for the slice, and reads off memory and time."""
