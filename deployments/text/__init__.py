"""Intents of bank customers (Banking77): scikit-learn's linear models on words and characters, behind a runner of their own."""
