"""Runs commands one after another in each of several processes: `torch.distributed.run ... several_commands.py JSON`.

Starting processes takes longer than what tiny models take in them, so that one launch serves several tests.
"""

import json
import sys

from swm.cli.main import main
from swm.healing import trainer
from swm.models.processes import leave

trainer._in_bfloat16 = lambda *_: False  # its rounding grows with each step, until it is no smaller than a mistake
for command in json.loads(sys.argv[1]):
    print(f"== {' '.join(command[:3])}", flush=True)
    main(command)
leave()
