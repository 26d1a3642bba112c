"""The same transformer block in each library, with the same weights: what several works time."""
