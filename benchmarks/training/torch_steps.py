"""A plain PyTorch loop, as strong as torch makes it: fused attention and optimizer, cached reference, and logits of the
responses alone, in float32. On a GPU if there is one.

    python torch_steps.py CASE

On a GPU, all examples of a batch are computed at once or a half of them, and so on, whichever is fastest of those that
fit into its memory: fewer need less padding. Only if one alone does not fit are layers computed again in the backward
pass. That is found out before the first step.
"""

import sys
import time

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available
from worker import BETA, LEARNING_RATE, MAX_GRAD_NORM, Case, Example, Report, padded

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    case, report = Case(sys.argv[1]), Report()
    attention = fastest_attention()
    dtype = getattr(torch, case.dtype)
    model = AutoModelForCausalLM.from_pretrained(case.model, dtype=dtype, attn_implementation=attention).to(DEVICE)
    model.train()  # or nothing would be recomputed
    model.config.use_cache = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    size = examples_at_once(model, case)
    references: list[torch.Tensor | None] = [None] * len(case.batches)
    if case.task == "dpo":
        report.lap()
        with torch.no_grad():
            references = [
                torch.cat([logprobs(model, part, case) for part in parts(batch, size)], dim=1) for batch in case.batches
            ]
            float(references[-1].sum())  # a GPU does one thing after the other: now all are there
        report.reference_seconds = report.lap()
    report.lap()
    for step, batch in enumerate(case.steps):
        loss = add_gradients(model, batch, references[step % len(references)], size, case)
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        report.losses.append(loss.item())
        report.seconds.append(report.lap())
    report.note = f"{attention}, {size} at once" + ", layers computed again" * model.is_gradient_checkpointing
    report.print("torch", "transformers", peak=torch.cuda.max_memory_allocated() or None)


def fastest_attention() -> str:
    if is_flash_attn_3_available():
        return "flash_attention_3"
    return "flash_attention_2" if is_flash_attn_2_available() else "sdpa"


def examples_at_once(model, case: Case) -> int:
    """How many are; see above."""
    whole = max(map(len, case.batches))
    if DEVICE.type == "cpu":
        return whole
    for recompute in (False, True):
        if recompute:
            model.gradient_checkpointing_enable()
        trial(model, 1, case)  # loads kernels
        sizes = [whole >> halvings for halvings in range(whole.bit_length())]
        seconds = {size: found for size in sizes if (found := trial(model, size, case))}
        if seconds:
            torch.cuda.reset_peak_memory_stats()
            return min(seconds, key=seconds.__getitem__)
    raise SystemExit("not one example fits into the GPU's memory")


def trial(model, size: int, case: Case) -> float | None:
    """Seconds for the gradients of all batches, `size` examples at once; None if they do not fit."""
    # In place of the optimizer's moments, which are not there yet.
    moments = [torch.empty_like(parameter) for parameter in model.parameters() for _ in range(2)]
    start = time.perf_counter()
    try:
        for batch in case.batches:
            add_gradients(model, batch, None, size, case)
        torch.cuda.synchronize()
        return time.perf_counter() - start
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        del moments
        model.zero_grad()
        torch.cuda.empty_cache()


def add_gradients(model, batch: list[Example], reference: torch.Tensor | None, size: int, case: Case) -> torch.Tensor:
    """Adds the gradients of the batch's loss, `size` examples at once, and returns the loss."""
    targets = sum(len(example[which]) for which in case.answers for example in batch)
    total = torch.zeros((), device=DEVICE)
    for number, part in enumerate(parts(batch, size)):
        summed = logprobs(model, part, case)
        if case.task == "dpo":
            if reference is not None:
                summed = summed - reference[:, number * size : number * size + len(part)]
            chosen, rejected = summed
            loss = -F.logsigmoid(BETA * (chosen - rejected)).sum() / len(batch)
        else:
            loss = -summed.sum() / targets
        loss.backward()
        total += loss.detach()
    return total


def parts(batch: list[Example], size: int) -> list[list[Example]]:
    return [batch[start : start + size] for start in range(0, len(batch), size)]


def logprobs(model, examples: list[Example], case: Case) -> torch.Tensor:
    """The summed log-probability of each answer, [answers, examples]."""
    prompts = [example["prompt"] for _ in case.answers for example in examples]
    answers = [example[which] for which in case.answers for example in examples]
    filled = padded([p + a for p, a in zip(prompts, answers, strict=True)])
    ids, mask = (torch.tensor(rows, device=DEVICE) for rows in filled)
    # No token sees the padding, which follows after all. Without a mask, torch takes its fastest attention.
    hidden = model.model(ids).last_hidden_state
    places = torch.arange(ids.shape[1], device=DEVICE)
    starts = torch.tensor([len(prompt) for prompt in prompts], device=DEVICE)[:, None]
    is_target = (places >= starts) & mask.bool()
    logits = model.lm_head(hidden[:, :-1][is_target[:, 1:]]).float()
    found = -F.cross_entropy(logits, ids[:, 1:][is_target[:, 1:]], reduction="none")
    rows = torch.nonzero(is_target[:, 1:])[:, 0]
    return torch.zeros(len(ids), device=DEVICE).index_add(0, rows, found).view(len(case.answers), -1)


if __name__ == "__main__":
    main()
