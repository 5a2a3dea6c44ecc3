"""Native stacks, beside those that others find."""
