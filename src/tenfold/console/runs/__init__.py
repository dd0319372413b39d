"""What a run's directory says of the run: its record, its time, its faults, and whether it trains now."""
