"""What pytest is not to collect here."""

collect_ignore = ["rank_worker.py"]  # what ranks run, in processes that test_ranks.py starts
