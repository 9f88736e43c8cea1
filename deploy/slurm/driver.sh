#!/bin/bash
#SBATCH --job-name=cvdask
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=24:00:00
# The command given to this script runs as a job, and submits the jobs of its workers from there:
#   sbatch deploy/slurm/driver.sh cvdask measure /shared/cell.zarr --cluster slurm
set -euo pipefail
# Workers' jobs ask for their own: what SLURM told this one is not for them.
unset SBATCH_MEM_PER_NODE SLURM_MEM_PER_NODE SLURM_CPUS_PER_TASK
exec "$@"
