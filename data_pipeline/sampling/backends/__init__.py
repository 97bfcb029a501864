"""What samples from the source models: each module has a class that fulfils `sampler.Sampler`; `opening` picks one."""
