#!/usr/bin/env bash
# Stillroom on SLURM: the corpus once, capture as an array of jobs, then the rest of the run.
#
#     bash slurm.sh /shared/recipe.yaml [PARTS] [WORKERS]
#
# Recipe, text, teacher and the run's folder are on a file system that all nodes see; `stillroom` is on every node's PATH.
# Partition, account and times are your cluster's: change the options of sbatch. Any job may be killed and queued again.
set -euo pipefail

recipe=${1:?give the path of a recipe}
parts=${2:-64}
workers=${3:-8}

corpus=$(sbatch --parsable --job-name=corpus --cpus-per-task=8 --mem=32G --time=04:00:00 --requeue \
    --wrap "exec stillroom corpus '$recipe' --quiet")

# One GPU for each part. A part that is started again does what is not there yet.
capture=$(sbatch --parsable --job-name=capture --dependency="afterok:$corpus" --array="1-$parts" \
    --gpus=1 --cpus-per-task=8 --mem=64G --time=08:00:00 --requeue \
    --wrap "exec stillroom capture '$recipe' --part \$SLURM_ARRAY_TASK_ID/$parts --quiet")

# What parts left undone is captured here, on one GPU, so that one failed part does not stop the run. SIGTERM two minutes before the
# end of the time saves a checkpoint; the job that is queued again goes on from it.
sbatch --job-name=train --dependency="afterany:$capture" --nodes=1 --gpus="$workers" --cpus-per-task=32 --mem=256G \
    --time=24:00:00 --signal=B:TERM@120 --requeue \
    --wrap "exec stillroom run '$recipe' --workers $workers --quiet"
