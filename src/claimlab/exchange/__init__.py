"""Results for others, and others' things for the lab: files and trackers, SQL, differences, another ledger, own data."""
