"""The arguments of all commands as plain dataclasses, the one parser that reads them, and what a wrong one does.

Standard library only, so that `--help` answers at once. A field is an argument: its name, its type and its default are
the option's; `metadata` holds its help and, where the values are fixed, its choices. A command's dataclass inherits the
groups it takes, and a group is defined once.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import json
import os
import re
import sys
import time
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """A mistake of the user's. Its text is one line: where it is, what it is, what to do. Ends with exit status 2."""


def option(default: Any = None, help: str = "", choices: Sequence[str] = (), metavar: str = "") -> Any:
    """A dataclass field that is a command-line option; a list default makes the option repeatable."""
    metadata = {"help": help, "choices": tuple(choices), "metavar": metavar}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def positional(help: str, required: bool = True) -> Any:
    """A dataclass field that takes the words of the command line which belong to no option."""
    return dataclasses.field(default_factory=list, metadata={"help": help, "positional": True, "required": required})


@dataclass(kw_only=True)
class StrategyArguments:
    """Which DeepSpeed JSON runs, and what fills the values that it leaves at "auto"."""

    ds_config: str | None = option(help="the DeepSpeed JSON that runs", metavar="JSON")
    override: list[str] = option(
        [], help="change one value of the JSON: dotted.path=VALUE (repeatable)", metavar="KEY=VALUE"
    )
    engine: str = option(
        "deepspeed",
        help="what executes the strategy; torch is native DDP and FSDP2, the independent reference",
        choices=("deepspeed", "torch"),
    )
    no_lint: bool = option(False, help="start although the lint calls something in the JSON an error")
    per_device_train_batch_size: int | None = option(help="samples of one forward on one rank (default 8)", metavar="N")
    gradient_accumulation_steps: int | None = option(
        help="micro-batches a rank does in one step (default 1)", metavar="N"
    )
    train_batch_size: int | None = option(
        help="samples of one step over all ranks; accumulation is solved from it", metavar="N"
    )
    learning_rate: float | None = option(help="peak learning rate (default 5e-4)", metavar="LR")
    weight_decay: float | None = option(help="of matrices; norms and biases have none (default 0.1)", metavar="X")
    bf16: bool | None = option(help="bf16 products (default: where the device multiplies bf16 natively)")
    fp16: bool | None = option(help="fp16 products with loss scaling (default: on a GPU without bf16)")
    max_grad_norm: float | None = option(help='gradient clipping where the JSON says "auto" (default 1.0)', metavar="X")


@dataclass(kw_only=True)
class ModelArguments:
    """What is trained."""

    model: str = option("mini", help="a preset, a transformers config.json, or a model directory to continue from")
    seq_len: int = option(512, help="positions of one sample", metavar="N")
    attn_implementation: str | None = option(help="sdpa, eager, flash_attention_2, ... (default: sdpa)", metavar="NAME")
    loss: str = option(
        "auto",
        help="how the head's loss is computed: without ever holding the logits (chunked, liger) or with them (full)",
        choices=("auto", "chunked", "full", "liger"),
    )
    gradient_checkpointing: bool = option(False, help="recompute activations in the backward pass")
    torch_compile: bool = option(False, help="compile the model with torch.compile")
    seed: int = option(42, help="of the weights and of the order of the samples", metavar="N")


@dataclass(kw_only=True)
class DataArguments:
    """What it is trained on."""

    dataset: str = option(
        "builtin:python",
        help="builtin:python, a .txt/.jsonl/.jsonl.gz/.parquet file, folder or glob, or a hub name[:config]",
    )
    tokenizer: str | None = option(
        help="hub name or local path (default: a byte-level BPE of 8,192 tokens, trained once)"
    )
    text_column: str = option("text", help="the column of .jsonl, .parquet and hub data that holds the text")
    no_packing: bool = option(False, help="one document a sample, truncated and padded, instead of packed documents")
    eval_docs: int | None = option(
        help="first documents held out (default: 5,000 or 1 %%, whichever is fewer)", metavar="N"
    )
    eval_dataset: str | None = option(help="evaluate on this text instead of held-out documents")
    cache_dir: str | None = option(
        help="where tokens are kept (default: lm_scale in the user's cache folder)", metavar="DIR"
    )


@dataclass(kw_only=True)
class RunArguments:
    """How long, how, and what is kept."""

    max_steps: int | None = option(help="optimizer steps (default: num_train_epochs, or the budget)", metavar="N")
    num_train_epochs: float = option(1.0, help="length without --max_steps and --budget", metavar="X")
    budget: str | None = option(help="stop after this much training time: 90s, 30m, 2h", metavar="TIME")
    lr_scheduler_type: str = option(
        "cosine", help="shape of the learning rate", choices=("linear", "cosine", "constant", "constant_with_warmup")
    )
    warmup_steps: float | None = option(help="steps of warm-up; below 1 a share of the run (default 0.05)", metavar="X")
    warmup_ratio: float | None = option(help="old name of a --warmup_steps below 1", metavar="X")
    eval_steps: int | None = option(help="evaluate every N steps too (always at the end)", metavar="N")
    per_device_eval_batch_size: int | None = option(
        help="samples of one evaluation forward (default: as in training)", metavar="N"
    )
    save_steps: int | None = option(help="write a checkpoint every N steps", metavar="N")
    resume: str | None = option(
        help="go on from the newest checkpoint: of this RUN, or auto: of --run_name", metavar="auto|RUN"
    )
    no_save: bool = option(False, help="do not write the trained weights at the end")
    output_dir: str = option("runs", help="folder of the run directories", metavar="DIR")
    run_name: str | None = option(help="name of the run directory (default: strategy, sizes, time)", metavar="NAME")
    logging_steps: int = option(1, help="refresh the progress bar every N steps; every step is recorded", metavar="N")
    sample_prompt: list[str] = option([], help="continue this text at the end (repeatable; default: an eval document)")
    sample_tokens: int = option(64, help="tokens of one sample; 0 for none", metavar="N")
    report_to: str = option("none", help="mirror the records: none, wandb", choices=("none", "wandb"))


@dataclass(kw_only=True)
class PretrainArguments(StrategyArguments, ModelArguments, DataArguments, RunArguments):
    """Everything one run takes; the order of the groups is the order of `--help`."""


@dataclass(kw_only=True)
class CompareArguments(PretrainArguments):
    """Several runs under the same arguments."""

    ds_configs: list[str] = positional("the DeepSpeed JSONs to run, one after another")
    world_size: int | None = option(
        help="ranks (default: all accelerators; on a CPU 2, or the cores if fewer)", metavar="N"
    )
    baseline: str | None = option(help="the run that speedup refers to (default: the first)", metavar="NAME")
    cell_timeout: str = option("2h", help="end a run that takes longer", metavar="TIME")
    check_parity: bool = option(
        False, help="run native PyTorch in fp32 too, and say of each run whether its losses and gradient norms are its"
    )


@dataclass(kw_only=True)
class LintArguments(StrategyArguments, ModelArguments):
    """The DeepSpeed JSONs to check, and for where; of the other groups all but --override are for --resolved alone."""

    ds_configs: list[str] = positional("the DeepSpeed JSONs to check, or folders of them")
    world_size: int | None = option(help="ranks (default: not known)", metavar="N")
    device: str | None = option(help="of the ranks (default: not known)", choices=("cpu", "gpu"))
    format: str = option("text", help="how the problems are printed", choices=("text", "json"))
    notes: bool = option(False, help="print what is worth knowing too")
    resolved: bool = option(False, help="print each JSON as it would run, every value with where it came from")


@dataclass(kw_only=True)
class PlanArguments(PretrainArguments):
    """The machine that a run is planned for, and what is asked about it."""

    world_size: int = option(1, help="ranks", metavar="N")
    nodes: int | None = option(help="nodes they are spread over (default: as few as hold them)", metavar="N")
    device: str | None = option(
        help="a100-40gb, a100-80gb, h100, h200, b200, v100-32gb, t4, rtx4090, cpu, with numbers in place of any: "
        "h100,network=50 or memory=48,tflops=150 (default: cpu, where this machine has no accelerator)",
        metavar="NAME",
    )
    vocab_size: int | None = option(help="tokens of the tokenizer (default: as the model's config says)", metavar="N")
    master_weights: bool = option(
        True, help="false: weights, gradients and moments in the products' precision, as torch's AdamW on a bf16 model"
    )
    max: bool = option(False, help="find the largest micro-batch that fits, or the fewest ranks where none does")
    all: bool = option(False, help="rank every strategy in the folder of --ds_config (default: ds_configs)")
    price_per_hour: float | None = option(help="of one device: prints the cost of a billion tokens", metavar="X")
    rehearse: bool = option(False, help="run DeepSpeed itself as one rank of this world, and print both")
    rank: int = option(0, help="the rank that is rehearsed", metavar="R")
    format: str = option("text", help="how the plan is printed", choices=("text", "json"))


@dataclass(kw_only=True)
class ReportArguments:
    """Which runs the table shows and how."""

    paths: list[str] = positional("run directories, logs, or folders of them (default: runs)", required=False)
    format: str = option("terminal", help="how the table is printed", choices=("terminal", "md", "csv", "json"))
    layout: str = option("compact", help="which columns the table has", choices=("compact", "homework"))
    columns: str | None = option(help="comma-separated row keys to show instead", metavar="A,B,...")
    baseline: str | None = option(
        help="the run that speedup, efficiency and loss differences refer to (default: the first with a throughput)",
        metavar="NAME",
    )
    merge: bool = option(False, help="show the runs of one strategy under the same conditions as one row of medians")
    filter: list[str] = option(
        [],
        help="show only rows that fulfil this: KEY=VALUE, or !=, <, <=, >, >= (repeatable; VALUE null: not known)",
        metavar="KEY=VALUE",
    )
    sort: str | None = option(help="order the rows by this key; -KEY: from the largest", metavar="KEY")
    group_by: str | None = option(
        help="a table for each value of this key, such as owner, with a baseline of its own unless --baseline is given",
        metavar="KEY",
    )


@dataclass(kw_only=True)
class GenerateArguments:
    """Text from the weights of a run."""

    runs: list[str] = positional("a run directory, or a Hugging Face model directory")
    prompt: list[str] = option([], help="the text to continue (repeatable)")
    max_new_tokens: int = option(64, help="tokens to add", metavar="N")
    temperature: float = option(0.8, help="0 takes the likeliest token", metavar="T")
    top_p: float = option(0.95, help="sample from the likeliest tokens of this total probability", metavar="P")
    seed: int = option(0, help="of the sampling", metavar="N")


Arguments = TypeVar("Arguments")


def parse(cls: type[Arguments], argv: Sequence[str], command: str, summary: str) -> Arguments:
    """The arguments in `argv`, over those of an `--arguments FILE` (YAML or JSON), over the defaults.

    Raises:
        UserError: an argument is unknown, malformed or missing; it names the nearest known one.
    """
    parser = _parser(cls, command, summary)
    namespace, unknown = parser.parse_known_intermixed_args(_flags_joined(cls, argv))
    for word in unknown:
        if word.startswith("-"):
            raise UserError(f"{word.split('=')[0]}: unknown argument{_did_you_mean(word, cls)}")
        raise UserError(f"{word}: belongs to no argument; see {command} --help")
    given = vars(namespace)
    given.pop("local_rank", None)
    file = given.pop("arguments", None)
    values = {**(_from_file(cls, Path(file)) if file else {}), **given}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.metadata.get("positional") and field.metadata["required"] and not values.get(field.name):
            raise UserError(f"{command}: {field.name} missing ({field.metadata['help']})")
    return cls(**values)


def seconds(text: str, name: str) -> float:
    """The duration `text` (`90s`, `30m`, `2h`, `1h30m`, or plain seconds) in seconds; `name` is where it was given.

    Raises:
        UserError: it is no duration, or not above zero.
    """
    parts = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    total = (
        sum(float(part or 0) * unit for part, unit in zip(parts.groups(), (3600, 60, 1), strict=True)) if parts else 0.0
    )
    if not total > 0:
        raise UserError(f"{name} {text}: not a duration; write it like 90s, 30m or 2h")
    return total


def run_command(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a command's `main` on the command line and leave the process with its exit status.

    A `UserError` becomes one line on stderr and status 2: once, not once a rank. The first rank prints at once; the
    others wait for the launcher to end them and speak only if it does not, which is when the mistake is theirs alone.
    """
    rank = int(os.environ.get("RANK", "0") or 0)
    try:
        status = main(sys.argv[1:])
    except UserError as error:
        if rank:
            time.sleep(10)
        message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.__stderr__, flush=True)
        _leave(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        _leave(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())  # type: ignore[union-attr]
        _leave(EXIT_FAILED)
    if status:
        _leave(status)
    sys.exit(0)


def _leave(status: int) -> NoReturn:
    """End the process now: threads of frameworks must not keep a rank alive that has nothing left to do."""
    sys.stdout.flush()
    os._exit(status)


def _parser(cls: type, command: str, summary: str) -> argparse.ArgumentParser:
    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UserError(message.removeprefix("argument "))

    positionals = " ".join(f"{f.name.upper()} ..." for f in dataclasses.fields(cls) if f.metadata.get("positional"))
    parser = Parser(
        prog=command,
        usage=f"{command} [options] {positionals}".rstrip(),
        description=summary,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--local_rank", type=int, help=argparse.SUPPRESS
    )  # DeepSpeed's launcher passes it; the environment says it too
    parser.add_argument(
        "--arguments", metavar="FILE", help="YAML or JSON file of arguments; the command line wins over it"
    )
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for owner in cls.__mro__:
        own = [fields[name] for name in inspect.get_annotations(owner) if name in fields]
        if own:
            group = parser.add_argument_group(
                owner.__name__.removesuffix("Arguments").lower(), (owner.__doc__ or "").split("\n")[0]
            )
            for field in own:
                _add_option(group, field, hints[field.name])
    return parser


def _add_option(group: Any, field: dataclasses.Field[Any], hint: Any) -> None:
    if field.metadata.get("positional"):
        group.add_argument(field.name, nargs="*", help=field.metadata["help"], default=argparse.SUPPRESS)
        return
    kind = _value_type(hint)
    text = field.metadata["help"]
    if field.default not in (None, False, dataclasses.MISSING):
        text += f" (default {field.default})"
    keywords: dict[str, Any] = {"help": text}
    if kind is bool:
        keywords |= {"type": _boolean, "metavar": "true|false"}
    else:
        keywords |= {"type": kind}
        if field.metadata["choices"]:
            keywords["choices"] = field.metadata["choices"]
        elif field.metadata["metavar"]:
            keywords["metavar"] = field.metadata["metavar"]
    if typing.get_origin(hint) is list:
        keywords["action"] = "append"
    group.add_argument(f"--{field.name}", **keywords)


def _flags_joined(cls: type, argv: Sequence[str]) -> list[str]:
    """The words with `--flag`, `--flag false` and `--option -word` written with an equals sign.

    A flag takes the next word only if that is a truth value, so that it does not swallow a file's name. Another option
    takes a word that begins with one dash, which argparse would take for an option: `--sort -tokens_per_s`.
    """
    hints = typing.get_type_hints(cls)
    options = {f"--{field.name}" for field in dataclasses.fields(cls) if not field.metadata.get("positional")}
    flags = {f"--{field.name}" for field in dataclasses.fields(cls) if _value_type(hints[field.name]) is bool}
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word in flags:
            word += f"={rest.pop(0)}" if rest and rest[0].lower() in TRUTH else "=true"
        elif word in options and rest and re.match("-[^-]", rest[0]):
            word += f"={rest.pop(0)}"
        words.append(word)
    return words


def _value_type(hint: Any) -> type:
    """The type of one value: `int | None` and `list[int]` are both options that take an `int`."""
    inner: list[type] = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    return inner[0] if inner else typing.cast(type, hint)


def _boolean(text: str) -> bool:
    if text.lower() not in TRUTH:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return TRUTH[text.lower()]


def _did_you_mean(word: str, cls: type) -> str:
    names = [f"--{field.name}" for field in dataclasses.fields(cls) if not field.metadata.get("positional")]
    near = difflib.get_close_matches(word.split("=")[0].replace("-", "_").replace("__", "--", 1), names, n=1)
    return f"; did you mean {near[0]}?" if near else "; see --help"


def _from_file(cls: type, path: Path) -> dict[str, Any]:
    """The arguments that a YAML or JSON file gives, each checked as if it stood on the command line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if path.suffix == ".json":
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
    else:
        import yaml

        try:
            values = yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold a mapping of argument names to values")
    words = []
    known = {field.name for field in dataclasses.fields(cls)}
    for name, value in values.items():
        if name not in known:
            raise UserError(f"{path}: {name}: unknown argument{_did_you_mean(f'--{name}', cls)}")
        for one in value if isinstance(value, list) else [value]:
            if one is not None:
                words.append(f"--{name}={one}")
    positionals = {field.name for field in dataclasses.fields(cls) if field.metadata.get("positional")}
    listed = {
        name: values[name] if isinstance(values[name], list) else [values[name]] for name in positionals & values.keys()
    }
    plain = {name: [str(one) for one in given if one is not None] for name, given in listed.items()}
    options = [word for word in words if word.split("=")[0].removeprefix("--") not in positionals]
    return {**vars(_parser(cls, str(path), "").parse_args(options)), **plain}
