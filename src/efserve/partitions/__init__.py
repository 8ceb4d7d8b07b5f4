"""Making a partition real for the process that runs in it."""
