"""A cascade of hosted language models, tried out on recorded answers without a key."""
