"""What a person reads at the end of a run: the final table and the pictures."""
