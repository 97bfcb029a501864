"""Reward models that are sequence classifiers: a decoder with one label, whose logit is the reward.

With H the last hidden state of the decoder after its final norm, and t the last token of the conversation that is not
the padding token:

    reward = w . H[t]

This is what `AutoModelForSequenceClassification` of transformers computes for one conversation, but for the product,
which is in float32 here whatever the decoder's type. One of two backends computes it: `transformers_backend` or
`vllm_backend`. How a conversation becomes tokens where its texts quote special tokens, and how conversations make up
batches, is `armorm/`'s.
"""

HEAD = "score.weight"
"""Name of w in a checkpoint."""
