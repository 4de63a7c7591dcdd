"""What several tests of healing start from."""

from swm.settings import RecoverySettings

SMALL = RecoverySettings(steps=6, batch=2, length=16, rank=4, alpha=8, held_out=2, save_every=2, warmup_steps=1)
