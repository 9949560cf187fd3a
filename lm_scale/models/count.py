"""Parameters of a model that has no closed form here, counted on meta tensors: nothing is allocated or drawn.

`python -m lm_scale.models.count MODEL [VOCAB_SIZE]` prints one JSON object: `parameters` (a tied one once), `tied` and
`names`, those of the parameters of the first layer that has any. `lm_scale.plan` starts it, so as not to import torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from lm_scale.arguments import run_command
from lm_scale.models.presets import load_config


def main(argv: Sequence[str]) -> int:
    """Count and print."""
    source = load_config(argv[0])
    vocab_size = int(argv[1]) if len(argv) > 1 else source.vocab_size

    import torch
    from transformers import AutoModelForCausalLM

    from lm_scale.models.build import make_config

    config = make_config(source, vocab_size or 1)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.tie_weights()
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    found = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tied": head is not None and head.weight is embedding.weight,
        "names": [name for name, _ in model.named_parameters() if ".0." in name],
    }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    run_command(main)
