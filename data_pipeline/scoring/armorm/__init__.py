"""ArmoRM (Wang et al. 2024, arXiv 2406.12845), the reward of FuseChat-3.0: 19 objectives, weighted by the prompt.

With H the last hidden state of a Llama after its final norm, t the last token and g the start of the last gating
pattern (see `conversation`):

    r     = W H[t]                                            the objectives
    a     = softmax(MLP(H[g]) / temperature) * logit_scale    the gate
    score = sum_i a_i (r M)_i

`heads` computes this formula from H, which one of two backends computes: `transformers_backend`, or `vllm_backend` with
`vllm_model`, which vLLM finds through the entry point in `vllm_plugin`. None of them runs the checkpoint's own code,
which current versions of transformers cannot import.
"""

ARCHITECTURE = "LlamaForRewardModelWithGating"
"""The name in a checkpoint's `config.json`."""
