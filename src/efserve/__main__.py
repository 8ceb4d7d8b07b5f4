"""`python -m efserve`: the same as the `efserve` command."""

from efserve.cli import main

main()
