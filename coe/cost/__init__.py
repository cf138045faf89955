"""What a placement costs and how much it can carry. Pure functions of profiles, prices and load."""
