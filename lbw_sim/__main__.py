"""`python -m lbw_sim` is `lbw`."""

from lbw_sim.cli import main

main()
