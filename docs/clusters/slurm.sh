#!/usr/bin/env bash
# Stillroom on SLURM: the corpus once, capture as an array of jobs, pruning on one node, then training on NODES and the rest.
#
#     bash slurm.sh /shared/recipe.yaml [PARTS] [WORKERS] [NODES]
#
# Recipe, text, teacher and the run's folder are on a file system that all nodes see; `stillroom` is on every node's PATH.
# Partition, account and times are your cluster's: change the options of sbatch. Any job may be killed and queued again.
set -euo pipefail

recipe=${1:?give the path of a recipe}
parts=${2:-64}
workers=${3:-8}
nodes=${4:-1}

corpus=$(sbatch --parsable --job-name=corpus --cpus-per-task=8 --mem=32G --time=04:00:00 --requeue \
    --wrap "exec stillroom corpus '$recipe' --quiet")

# One GPU for each part. A part that is started again does what is not there yet.
capture=$(sbatch --parsable --job-name=capture --dependency="afterok:$corpus" --array="1-$parts" \
    --gpus=1 --cpus-per-task=8 --mem=64G --time=08:00:00 --requeue \
    --wrap "exec stillroom capture '$recipe' --part \$SLURM_ARRAY_TASK_ID/$parts --quiet")

# What parts left undone is captured here, on one GPU, so that one failed part does not stop the run.
shrink=$(sbatch --parsable --job-name=shrink --dependency="afterany:$capture" --gpus=1 --cpus-per-task=16 --mem=256G \
    --time=12:00:00 --requeue --wrap "exec stillroom run '$recipe' --until shrink --quiet")

# One launcher on each node, which starts a process for each GPU. SIGTERM two minutes before the end of the time saves a
# checkpoint; the job that is queued again goes on from it.
sbatch --job-name=train --dependency="afterok:$shrink" --nodes="$nodes" --ntasks-per-node=1 --gpus-per-node="$workers" \
    --cpus-per-task=32 --mem=256G --time=24:00:00 --signal=TERM@120 --requeue \
    --wrap "exec srun --kill-on-bad-exit=0 stillroom run '$recipe' --workers $workers --nodes auto --quiet"
