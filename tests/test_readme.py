"""What the README tells a user to type is what the commands take."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lm_scale.arguments import (
    CompareArguments,
    GenerateArguments,
    LintArguments,
    PlanArguments,
    PretrainArguments,
    ReportArguments,
    parse,
)

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = {
    "lint": LintArguments,
    "plan": PlanArguments,
    "compare": CompareArguments,
    "report": ReportArguments,
    "generate": GenerateArguments,
}


def pretrain_commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if "launch/pretrain.py" in line]


@pytest.mark.parametrize("command", pretrain_commands())
def test_a_pretrain_command_parses_and_its_files_exist(command: str) -> None:
    words = shlex.split(command)
    arguments = parse(PretrainArguments, words[words.index("launch/pretrain.py") + 1 :], "pretrain", "")
    assert arguments.ds_config is not None
    assert (ROOT / arguments.ds_config).is_file()


def test_it_shows_a_pretrain_command() -> None:
    assert pretrain_commands()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`?(--[a-z_]+)", README)) - {"--help", "--arguments", "--all"}))
def test_every_option_it_names_is_one(name: str) -> None:
    known = {field for group in (PretrainArguments, *COMMANDS.values()) for field in group.__dataclass_fields__}
    assert name.removeprefix("--") in known


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:launch|lm_scale|ds_configs|tests)/[\w./]+)", README))))
def test_every_path_it_names_exists(path: str) -> None:
    assert (ROOT / path).exists() or (ROOT / "lm_scale" / path).exists()


def test_the_strategies_of_its_table_are_those_of_the_demo() -> None:
    demo = (ROOT / "launch" / "demo.sh").read_text(encoding="utf-8")
    for name in re.findall(r"ds_configs/(\w+)\.json", demo):
        assert re.search(rf"^{name} .*completed", README, re.MULTILINE)
