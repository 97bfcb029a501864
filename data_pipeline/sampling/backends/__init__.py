"""What asks the source models: each module has a class that fulfils `sampler.Sampler`; `opening` chooses one."""
