"""How a client shows that it knows the token, and to whom."""
