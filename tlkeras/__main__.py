"""`python -m tlkeras`."""

from tlkeras.cli import main

main()
