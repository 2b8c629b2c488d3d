#!/bin/bash
# Two nodes of eight GPUs under Slurm: sbatch examples/slurm.sh, in a checkout on a disk that all nodes share.
#SBATCH --job-name=hfgen
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
set -euo pipefail

# One launcher a node starts its processes. They meet at the first node, and start again, from the last checkpoint, if
# one of them is lost. TERM arrives 300 seconds before the end: the run saves a checkpoint. A job that is queued again
# goes on from it, as the same command always does.
export OMP_NUM_THREADS=4 TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun --kill-on-bad-exit=0 torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 8 --max-restarts 3 \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head:29500" \
    training/train_diffusion.py --dataset data/shards --resolution 64 --train_batch_size 32 \
    --sharding fsdp2 --mixed_precision bf16 --checkpointing_steps 500 --output_dir outputs/many
