"""A plain PyTorch loop, as strong as torch makes it: fused attention and optimizer, cached reference, and logits of the
responses alone.

    python torch_steps.py CASE
"""

import sys

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM
from worker import BETA, LEARNING_RATE, MAX_GRAD_NORM, Case, Example, Report, padded


def main() -> None:
    case, report = Case(sys.argv[1]), Report()
    model = AutoModelForCausalLM.from_pretrained(case.model, dtype=torch.float32, attn_implementation="sdpa")
    model.config.use_cache = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    references = []
    if case.task == "dpo":
        report.lap()
        with torch.no_grad():
            references = [logprobs(model, batch, case)[0] for batch in case.batches]
        report.reference_seconds = report.lap()
    report.lap()
    for step, batch in enumerate(case.steps):
        summed, targets = logprobs(model, batch, case)
        if case.task == "dpo":
            chosen, rejected = (summed - references[step % len(references)]).view(2, -1)
            loss = -F.logsigmoid(BETA * (chosen - rejected)).mean()
        else:
            loss = -summed.sum() / targets
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        report.losses.append(loss.item())
        report.seconds.append(report.lap())
    report.print("torch", "transformers")


def logprobs(model, batch: list[Example], case: Case) -> tuple[torch.Tensor, int]:
    """The summed log-probability of each answer, all chosen ones first; and how many tokens they have."""
    prompts = [example["prompt"] for _ in case.answers for example in batch]
    answers = [example[which] for which in case.answers for example in batch]
    ids, mask = map(torch.tensor, padded([p + a for p, a in zip(prompts, answers, strict=True)]))
    # Without a mask, torch takes its fastest attention.
    hidden = model.model(ids, attention_mask=None if mask.all() else mask).last_hidden_state
    places = torch.arange(ids.shape[1])
    starts = torch.tensor([len(prompt) for prompt in prompts])[:, None]
    is_target = (places >= starts) & mask.bool()
    logits = model.lm_head(hidden[:, :-1][is_target[:, 1:]])
    found = -F.cross_entropy(logits, ids[:, 1:][is_target[:, 1:]], reduction="none")
    rows = torch.nonzero(is_target[:, 1:])[:, 0]
    return torch.zeros(len(ids)).index_add(0, rows, found), len(rows)


if __name__ == "__main__":
    main()
