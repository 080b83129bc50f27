"""The embedded example: scikit-learn's digits, and the training of the embedded teachers."""
