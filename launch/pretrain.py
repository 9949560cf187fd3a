"""The script that launchers start: `deepspeed launch/pretrain.py --ds_config ds_configs/zero2.json`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lm_scale.arguments import run_command
from lm_scale.pretrain import main

run_command(main)
