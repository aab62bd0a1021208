"""What the stage `export` takes."""

from __future__ import annotations

from stillroom.core.gguf_types import GGUF_TYPES
from stillroom.recipe.recipe import Recipe
from stillroom.runs.costs import OPEN_STUDENT_SECONDS, Counts, Profile, StageCost

CHECK_POSITIONS_PER_SECOND = 25.0
"""Positions per second at which an exported file is checked through the runtime, one position at a time."""
RECOVERY_WORK = 4 / 3
"""Time of a step of recovery divided by a training step's: the unquantised student runs forward too."""
COPIES = 3
"""Copies of the student's weights in memory while GGUF files are written."""
ONNX_COPIES = 4
"""Copies of the student's weights in memory while the ONNX graph is written and compared with the student."""
ONNX_LAYER_SECONDS = 2.2
"""Seconds to trace one layer and write it as an ONNX graph. Python does most of the work, so the layer's width hardly
matters."""
ONNX_LAYER_BYTES = 130e3
"""Bytes of the ONNX graph per layer, without weights."""


def stage_cost(recipe: Recipe, counts: Counts, profile: Profile) -> StageCost:
    """Every GGUF file written and checked, one more where one is chosen; importance, recovery and ONNX where asked for."""
    onnx = recipe.export.onnx
    graph = counts.student_bytes + counts.student_layers * ONNX_LAYER_BYTES if onnx else 0.0
    return StageCost(
        seconds=_seconds(recipe, counts, profile),
        memory_bytes=profile.base_bytes + (ONNX_COPIES if onnx else COPIES) * counts.student_bytes,
        disk_bytes=graph + sum(counts.gguf_bytes.values()),
    )


def _seconds(recipe: Recipe, counts: Counts, profile: Profile) -> float:
    config = recipe.export
    files = len(config.gguf) + int(config.choose is not None)
    weighted = sum(GGUF_TYPES[kind].importance for kind in config.gguf)
    each = OPEN_STUDENT_SECONDS + counts.write_seconds(1) + config.check_tokens / CHECK_POSITIONS_PER_SECOND
    seconds = OPEN_STUDENT_SECONDS + files * each
    if weighted or config.choose is not None:
        seconds += min(config.importance_tokens, counts.train_tokens) * counts.ratio / profile.exact_rate
    if config.recover is not None:
        tokens = config.recover.steps * config.recover.batch_tokens
        seconds += weighted * tokens * counts.expansion * profile.token_seconds * RECOVERY_WORK
    if config.onnx:
        seconds += 2 * OPEN_STUDENT_SECONDS + counts.student_layers * ONNX_LAYER_SECONDS + counts.write_seconds(1)
    return seconds
