"""`efserve infer`: runs a model on files, in this process or on a server, and ranks the classes it answers."""
