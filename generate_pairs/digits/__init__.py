"""The embedded example: scikit-learn's digits and the teachers trained on them."""
