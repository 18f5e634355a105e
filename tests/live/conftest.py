"""What pytest is not to collect here."""

collect_ignore = ["rank_worker.py"]  # a program, run by test_ranks.py
