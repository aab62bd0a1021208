"""Libraries that report their own use to their makers are told not to."""

from __future__ import annotations

import os
import sys

OFF = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_ERROR_REPORTING": "false",
}
"""Environment variables that turn telemetry off, whatever they were."""


def turn_off() -> None:
    """Set them for this process and its children, and for libraries that read them before."""
    os.environ.update(OFF)
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:
        constants.HF_HUB_DISABLE_TELEMETRY = True  # type: ignore[attr-defined]
