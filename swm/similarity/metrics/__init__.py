"""Measures of how similar layers are, one file each.

- cka: debiased linear CKA, the default; cka_rbf: with a Gaussian kernel; cka_biased: as first published
- cosine, angular: of the states as they are, without allowing for rotation
"""
