"""Networks that compute the features of images."""
