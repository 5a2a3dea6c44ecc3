"""Native frames as workers send them, and the names of their functions."""
