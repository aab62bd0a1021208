# What both parts begin with; its argument is the number of the trip.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
: "${OUT:?Set OUT to a folder for the results.}"
: "${PYTHON:=python3}"
export STILLROOM_GPU_KEEP="${STILLROOM_GPU_KEEP:-/tmp/stillroom-gpu}"
export PYTHONUNBUFFERED=1 CUDA_MODULE_LOADING=LAZY HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
mkdir -p "$OUT"
if [ -d "build/gpu/trip$1" ] && [ "${STILLROOM_GPU_SIZE:-full}" = full ]; then
	"$PYTHON" tools/gpu/pack.py --join "build/gpu/trip$1" "$STILLROOM_GPU_KEEP" 2>&1 | tee "$OUT/join$1.log"
fi
export PYTHONPATH="$PWD/src:$PWD:$STILLROOM_GPU_KEEP/site"
