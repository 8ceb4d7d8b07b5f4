"""Worker processes: the parent's handle and the child's life."""
