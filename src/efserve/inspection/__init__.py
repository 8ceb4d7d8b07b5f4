"""Looking at models without serving them: those of a running server, and those of a repository before it is served."""
