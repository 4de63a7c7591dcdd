"""The command line with FSDP2 on processors: what accelerate and torch do on GPUs alone is let happen here too.

Also runs a list of commands, given as JSON. Each process says what the weights it begins training with take, and at the
end the most memory that it had.
"""

import json
import resource
import sys

import accelerate.state
import torch.distributed.checkpoint.state_dict as whole_states
from accelerate import DistributedType, PartialState
from torch.distributed._functional_collectives import AsyncCollectiveTensor

import swm.stages.recover
from swm.cli.main import main
from swm.models.processes import leave, rank

begin, gather = accelerate.state.AcceleratorState.__init__, whole_states.get_model_state_dict
heal = swm.stages.recover.recover


def begun(self, *args, **kwargs):
    """Accelerate switches FSDP on for processes with GPUs: these say that they have some, once."""
    if not accelerate.state.AcceleratorState._shared_state:
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    begin(self, *args, **kwargs)


def gathered(*args, **kwargs):
    """On a GPU copying the weights to the processor waits for them."""
    found = gather(*args, **kwargs)
    return {name: w.wait() if isinstance(w, AsyncCollectiveTensor) else w for name, w in found.items()}


def healed(model, *args, **kwargs):
    """Healing that first says how many bytes of weights this process holds."""
    held = sum(weight.nbytes for weight in model.parameters() if not weight.is_meta)
    print(f"process {rank()} holds {held} bytes", flush=True)
    return heal(model, *args, **kwargs)


if __name__ == "__main__":
    accelerate.state.AcceleratorState.__init__ = begun
    whole_states.get_model_state_dict = gathered
    swm.stages.recover.check_sharding = lambda: None
    swm.stages.recover.recover = healed
    for command in json.loads(sys.argv[1]) if sys.argv[1].startswith("[") else [sys.argv[1:]]:
        main(command)
    print(f"process {rank()} peak {1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}", flush=True)
    leave()
