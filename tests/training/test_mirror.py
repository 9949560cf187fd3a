"""The mirror on a machine that has never seen W&B."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MIRROR = """
import sys
from pathlib import Path
from lm_scale.training.mirror import Mirror
mirror = Mirror(Path(sys.argv[1]), {"name": "one"}, lambda warning: print("WARNING", warning))
mirror.log("step", {"step": 1, "loss": 2.0})
mirror.finish("completed")
"""


def test_without_a_login_the_mirror_is_offline(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", MIRROR, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert "WARNING" not in done.stdout
    assert len(list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))) == 1
