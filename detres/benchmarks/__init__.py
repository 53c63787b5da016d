"""What the toolkit is timed and compared against."""
