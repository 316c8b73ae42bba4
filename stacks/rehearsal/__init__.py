"""What the rehearsals share, of a Slurm cluster and of AWS on this machine: their processes and ports."""
