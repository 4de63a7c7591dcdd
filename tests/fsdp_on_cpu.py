"""The command line with FSDP2 on processors: what accelerate and torch do on GPUs alone is let happen here too."""

import accelerate.state
import torch.distributed.checkpoint.state_dict as whole_states
from accelerate import DistributedType, PartialState
from torch.distributed._functional_collectives import AsyncCollectiveTensor

import swm.stages.recover
from swm.cli.main import main

begin, gather = accelerate.state.AcceleratorState.__init__, whole_states.get_model_state_dict


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


if __name__ == "__main__":
    accelerate.state.AcceleratorState.__init__ = begun
    whole_states.get_model_state_dict = gathered
    swm.stages.recover.check_sharding = lambda: None
    main()
