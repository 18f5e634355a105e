"""Foreign logs as traces: one source per file."""
