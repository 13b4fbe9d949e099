#!/usr/bin/env bash
# Pretraining on several machines of a Slurm cluster, with as many restarts as it takes.
#
#   sbatch scripts/accelerate/slurm.sh mae-base --data.source user/dataset --output-dir /shared/runs/a
#
# Set the numbers below for the cluster; options of sbatch before the script's name outrank them. The run's folder lies
# on storage that all machines share. Ahead of the time limit the run writes a checkpoint and the job queues again; so
# it goes on until it is finished. `scancel` ends it for good, after a checkpoint.
#SBATCH --job-name=hf-vitmae
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -uo pipefail

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-240} # seconds for the checkpoint
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # torch 2.13: else a restart may look for processes of the one before
first_machine=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# One launcher a machine. A process that dies takes the others along, and all start again from the last checkpoint.
srun torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" --max-restarts 3 \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first_machine:${MASTER_PORT:-29500}" \
    scripts/pretrain.py "$@" &
training=$!

time_is_up=
trap 'time_is_up=yes; kill -TERM $training' USR1
wait $training
code=$?
if [ -n "$time_is_up" ]; then
    wait $training
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
