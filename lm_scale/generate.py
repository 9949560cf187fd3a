"""`generate`: text from the weights of a run, or of any Hugging Face model directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_scale.arguments import GenerateArguments, UserError, parse, run_command


def main(argv: Sequence[str]) -> int:
    """Print what a run's model continues a prompt with."""
    arguments = parse(GenerateArguments, argv, "generate", (main.__doc__ or "").strip())
    if not arguments.prompt:
        raise UserError('--prompt missing: give the text to continue, for example --prompt "def "')
    if arguments.max_new_tokens < 1:
        raise UserError(f"--max_new_tokens {arguments.max_new_tokens}: must be at least 1")
    if arguments.temperature < 0 or not 0 < arguments.top_p <= 1:
        raise UserError("--temperature must not be negative, and --top_p must be above 0 and at most 1")
    folders = [weights_folder(Path(run)) for run in arguments.runs]

    import logging

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    from lm_scale.training.sampling import continue_text

    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.captureWarnings(True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for folder in folders:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        model.to(device)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for prompt in arguments.prompt:
            text = continue_text(
                model,
                tokenizer,
                prompt,
                arguments.max_new_tokens,
                seed=arguments.seed,
                temperature=arguments.temperature,
                top_p=arguments.top_p,
            )
            print(f"{prompt}{text}", flush=True)
    return 0


def weights_folder(run: Path) -> Path:
    """Where the weights of `run` lie: its `checkpoints/final`, or itself if it is a model directory.

    Raises:
        UserError: there are no weights, or no tokenizer to read a prompt with.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such run directory")
    folder = run / "checkpoints" / "final" if (run / "run.json").is_file() else run
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no weights here; the run ended early or was started with --no_save")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(
            f"{folder}: no tokenizer beside the weights; the run's data came tokenized and --tokenizer was not given"
        )
    return folder


if __name__ == "__main__":
    run_command(main)
