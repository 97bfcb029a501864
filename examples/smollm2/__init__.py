"""SmolLM2-135M-Instruct learns from the published, GPT-4-judged answers of six other models."""
