"""How a member is run: load, predict, close."""
