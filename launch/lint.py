#!/usr/bin/env python3
"""The script that pre-commit starts in another repository: nothing but Python 3.11 needs to be installed.

With `hjson`, which comes with deepspeed, files that only DeepSpeed can read are read too.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lm_scale.arguments import run_command
from lm_scale.lint import main

run_command(main)
