"""What several tests of jobs start from."""

import time


def wait_for(condition, seconds=90):
    """True once the condition holds; False when it does not in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False
