"""Attention: `dispatch` chooses among plain XLA by blocks, splash on TPUs, and Tokamax on NVIDIA GPUs."""
