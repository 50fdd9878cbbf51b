"""`python -m impact_lightning`: answer `--version` at once, import the rest only when it is needed."""

import sys


def main() -> None:
    """Run the command line."""
    if sys.argv[1:] == ["--version"]:
        from impact_lightning import __version__

        print(f"impact_lightning {__version__}")
        return
    from impact_lightning.cli import main as run

    run()


if __name__ == "__main__":
    main()
