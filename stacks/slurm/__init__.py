"""The Slurm orchestrator for ZenML: each step a job, the whole graph submitted at once, nothing left depending on the client."""
