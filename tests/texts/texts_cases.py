"""What several tests of texts start from."""

from swm.registry import TEXTS

CALIBRATION_TEXTS = tuple(
    name for name, text in TEXTS.items() if "calibration" in text.purposes and "from the hub" not in text.help
)
