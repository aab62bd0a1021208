#!/usr/bin/env bash
# Part 2, after part 1 and on the same machine while it is held: bash tools/gpu/part2.sh. It needs the teacher, whose second half
# came with this trip; a dry run (see part1.sh) makes a tiny one.
. "$(dirname "$0")/setup.sh" 2
timeout -k 10 585 "$PYTHON" -m tools.gpu.part2 --out "$OUT" 2>&1 | tee "$OUT/part2.log"
exit "${PIPESTATUS[0]}"
