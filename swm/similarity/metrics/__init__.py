"""Similarity metrics, one file each.

- cka: debiased linear CKA, the default; cka_rbf: with a Gaussian kernel; cka_biased: as first published
- cosine, angular: compare states directly, without allowing for rotation
"""
