"""One decoder for the Llama, Qwen2, Gemma-2 and Mistral families, and its way from and to Hugging Face checkpoints."""
