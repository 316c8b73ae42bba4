"""What the aws stacks need beside their stack files: the rehearsal of AWS on this machine."""
