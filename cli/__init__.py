"""What run.py's commands do: run pipelines, summarise and follow runs, check stacks."""
