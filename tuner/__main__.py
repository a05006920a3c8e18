"""`python -m tuner` is `fastrun`."""

from tuner.cli import program

if __name__ == "__main__":
    program()
