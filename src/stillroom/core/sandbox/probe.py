"""What this system lets a model's process be denied: tried in a child that gives up what an engine gives up."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from stillroom.core.sandbox.child import isolated
from stillroom.core.sandbox.confine import confine

SECONDS = 20.0


def measures() -> dict[str, str]:
    """A word for each restriction, as :func:`.confine.confine` reports it, found by trying in a child."""
    with tempfile.TemporaryDirectory(prefix="stillroom-probe-") as folder:
        command = isolated("stillroom.core.sandbox.probe", folder)
        try:
            done = subprocess.run(command, capture_output=True, timeout=SECONDS, env={}, check=False)
            found = json.loads(done.stdout)
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            return {"confinement": f"could not be tried: {error}"}
    return {str(name): str(word) for name, word in found.items()}


def main() -> None:
    """The child: give up, and say what of it is active."""
    report = confine([Path("/proc/self")], Path(sys.argv[1]), 4 << 30)
    sys.stdout.write(json.dumps(report))
    sys.stdout.flush()
