"""`python -m equibench.cli`, as `equibench`."""

from equibench.cli import main

main()
