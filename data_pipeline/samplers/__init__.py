"""What asks source models for answers. A backend is a module with a class that fulfils `base.Sampler`."""
