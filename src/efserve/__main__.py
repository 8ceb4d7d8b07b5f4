"""The way into `efserve` and `python -m efserve`."""

from efserve import ctrl_c


def main() -> None:
    """Runs the command line."""
    ctrl_c.ends_at_once()
    from efserve.cli import main as commands

    commands()


if __name__ == "__main__":
    main()
