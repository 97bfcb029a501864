"""fusejax: train one small model on the best answers of several large ones, in JAX."""

__version__ = "0.1.0"
