"""No library that a run uses reports to its makers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from stillroom.core.telemetry import OFF

BEFORE = "from huggingface_hub import constants"
SHOW = "import json, os\nprint(json.dumps([constants.HF_HUB_DISABLE_TELEMETRY, dict(os.environ)]))"
CALLS = {
    "a command": (
        "import sys; sys.argv = ['stillroom', '--version']; import stillroom.cli\n"
        "try: stillroom.cli.main()\nexcept SystemExit: pass"
    ),
    "a run": "from stillroom import pipeline\ntry: pipeline.run('nowhere.yaml')\nexcept Exception: pass",
    "a stage": "from stillroom import pipeline\ntry: pipeline.run_stage('nowhere.yaml', 'capture')\nexcept Exception: pass",
}


@pytest.mark.parametrize("before", ["", BEFORE], ids=["libraries after", "libraries before"])
@pytest.mark.parametrize("call", CALLS)
def test_telemetry_is_off(call: str, before: str) -> None:
    program = f"{before}\n{CALLS[call]}\n{BEFORE}\n{SHOW}"
    environment = {"PATH": "/usr/bin:/bin", "RAY_USAGE_STATS_ENABLED": "1", "HF_HUB_DISABLE_TELEMETRY": "0"}
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    ).stdout.splitlines()[-1]
    off, found = json.loads(shown)
    assert off is True
    assert found.items() >= OFF.items()
