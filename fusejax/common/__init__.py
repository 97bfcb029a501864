"""What the data pipeline and the trainer share: commands and their errors, files and buckets, the chat template.

Imports neither JAX nor torch.
"""
