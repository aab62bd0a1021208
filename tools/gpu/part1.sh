#!/usr/bin/env bash
# Part 1, on the machine with a GPU: bash tools/gpu/part1.sh. Results in $OUT as they come. A dry run on the processor:
# STILLROOM_GPU_DEVICE=cpu STILLROOM_GPU_SIZE=tiny OUT=build/dry bash tools/gpu/part1.sh
. "$(dirname "$0")/setup.sh" 1
timeout -k 10 585 "$PYTHON" -m tools.gpu.part1 --out "$OUT" 2>&1 | tee "$OUT/part1.log"
exit "${PIPESTATUS[0]}"
