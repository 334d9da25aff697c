"""What the model knows: Monte-Carlo dropout and other ensembles, and uncertainty token by token."""
