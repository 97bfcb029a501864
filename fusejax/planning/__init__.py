"""Planning a run on a TPU slice that is not there: compiling its programs for it, and reading off memory and time."""
