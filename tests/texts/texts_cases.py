"""What several tests of texts start from."""

CALIBRATION_TEXTS = ("lambada", "squad", "coqa")
