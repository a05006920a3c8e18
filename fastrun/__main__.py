"""`python -m fastrun` is `fastrun`."""

from fastrun.main import program

if __name__ == "__main__":
    program()
