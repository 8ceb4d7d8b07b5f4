"""`efserve doctor`: whether this machine has what serving and sharing need, and how to mend what it lacks."""
