"""`python -m tlkeras`."""

from tlkeras.cli import main

if __name__ == "__main__":
    main()
