"""What the workers of a simulated job would answer."""
