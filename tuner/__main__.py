"""`python -m tuner` is `fastrun`."""

from tuner.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
