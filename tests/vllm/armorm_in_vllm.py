"""A program for vLLM's environment: encodes prompts with an ArmoRM, in one engine after another.

Called with two files of JSON, to read and to write. The first: name -> a case, `{"engine": arguments of vLLM's engine,
"heads": whether to write what the heads are given, "calls": [{"prompts": [token ids, ...], "params": pooling
parameters}]}`. The second: name -> a list with what each call gave, rows of numbers or the message of an error; and for
"heads" the inputs of each call of theirs, with the types of all parameters.

Of this project it imports nothing: vLLM must find ArmoRM by the entry point.
"""

import gc
import json
import sys
from pathlib import Path
from typing import Any

import vllm


def main(asked: Path, answered: Path) -> None:
    found: dict[str, Any] = {}
    for name, case in json.loads(asked.read_text()).items():
        found |= _run(name, **case)
        gc.collect()  # An engine that ends when another has begun takes that one's groups of processes along.
    answered.write_text(json.dumps(found))


def _run(name: str, engine: dict[str, Any], calls: list[dict[str, Any]], heads: bool = False) -> dict[str, Any]:
    model = vllm.LLM(runner="pooling", enforce_eager=True, **engine)
    if heads:
        model.apply_model(_record)
    found: dict[str, Any] = {name: [_encode(model, **call) for call in calls]}
    if heads:
        found[f"{name} heads"] = model.apply_model(lambda model: model.record)[0]
    return found


def _encode(engine: vllm.LLM, prompts: list[list[int]], params: dict[str, Any]) -> Any:
    try:
        outputs = engine.encode(
            [vllm.TokensPrompt(prompt_token_ids=tokens) for tokens in prompts],
            vllm.PoolingParams(**params) if params else None,
            pooling_task="token_classify",
            use_tqdm=False,
        )
    except Exception as error:  # It is what the test is about.
        return str(error)
    return [output.outputs.data.tolist() for output in outputs]


def _record(model: Any) -> None:
    """Gives the model a record of its parameters' types, and of what goes into its heads and comes out."""
    types = {(name.split(".")[0], str(value.dtype)) for name, value in model.named_parameters()}
    model.record = {"types": sorted(types), "calls": []}
    model.pooler.heads.register_forward_hook(
        lambda _, inputs, output: model.record["calls"].append([part.double().tolist() for part in (*inputs, output)])
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
