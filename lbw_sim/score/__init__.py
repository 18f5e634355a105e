"""Judgement of recorded and replayed runs: what a guard saw in time and what it did, never what it saved."""
