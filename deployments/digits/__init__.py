"""The quickstart: a cascade that reads scikit-learn's handwritten digits."""
