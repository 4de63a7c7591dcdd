"""Models larger than one device: accelerate places their layers on GPUs, in memory and on disk.

Layers on disk stay in the model's own safetensors files and are read when they run. Weights that transformers converts
while loading (experts stored one by one) are written to a temporary folder, deleted together with the model.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import infer_auto_device_map
from accelerate.hooks import AlignDevicesHook, remove_hook_from_module
from accelerate.utils import send_to_device
from torch import Tensor, nn

from swm.disk.machine import free_memory_bytes

SHARE = 0.8  # of a device's free memory that weights may take: hidden states and a merged layer need the rest
Room = dict[int | str, int]


def room_here() -> Room:
    """Bytes available for weights on each GPU and in memory."""
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    room: Room = {gpu: int(SHARE * torch.cuda.mem_get_info(gpu)[0]) for gpu in gpus}
    return {**room, "cpu": int(SHARE * free_memory_bytes())}


def free_bytes_on(device: torch.device) -> int:
    """Free memory on the device, in bytes."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free_memory_bytes()


def device_map(skeleton: nn.Module, layers: list[nn.Module], dtype: torch.dtype, room: Room) -> dict[str, Any] | None:
    """Where each part of a model goes; None if the whole model fits on the first device.

    Args:
        skeleton: the model on the meta device.
        layers: its decoder layers, which are never split.
        room: as from `room_here`, the fastest device first; what fits nowhere goes to disk.
    """
    needed = sum(weight.numel() for weight in skeleton.parameters()) * dtype.itemsize
    if needed <= next(iter(room.values())):
        return None
    kinds = sorted({type(layer).__name__ for layer in layers})
    return dict(infer_auto_device_map(skeleton, dict(room), kinds, dtype=dtype))  # type: ignore[arg-type]


def let_go() -> None:
    """Free the memory of models that nothing names any more: accelerate's hooks and their modules name each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_offloaded(model: nn.Module) -> bool:
    """Whether the model is spread over several devices or disk."""
    return bool(getattr(model, "hf_device_map", None)) and any("_hf_hook" in vars(part) for part in model.modules())


def weights_of(layer: nn.Module) -> Mapping[str, Tensor]:
    """The layer's parameters by name; each access to an offloaded one loads it onto the device where the layer runs."""
    offloaded = any(_offload_hook(module) for module in layer.modules())
    return _OffloadedWeights(layer) if offloaded else dict(layer.named_parameters())


class _OffloadedWeights(Mapping[str, Tensor]):
    def __init__(self, layer: nn.Module) -> None:
        self._layer, self._parameters = layer, dict(layer.named_parameters())

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def __getitem__(self, name: str) -> Tensor:
        path, _, own = name.rpartition(".")
        hook, parameter = _offload_hook(self._layer.get_submodule(path)), self._parameters[name]
        return hook.weights_map[own].to(hook.execution_device, parameter.dtype) if hook else parameter


def _offload_hook(module: nn.Module) -> Any:
    """accelerate's hook that loads a module's own weights when it runs; None if they are not offloaded."""
    hook = vars(module).get("_hf_hook")
    return hook if isinstance(hook, AlignDevicesHook) and hook.offload else None


def bare(layer: nn.Module) -> nn.Module:
    """A copy of the layer without accelerate's hooks, to be called with replaced weights; shares its tensors."""
    shared = [*layer.parameters(), *layer.buffers()]
    shared += [vars(module)["_hf_hook"] for module in layer.modules() if "_hf_hook" in vars(module)]
    without_hooks = copy.deepcopy(layer, {id(item): item for item in shared})
    return remove_hook_from_module(without_hooks, recurse=True)


def brought(layer: nn.Module, call: Any) -> Any:
    """Arguments of a call, moved to the device where the layer runs."""
    return send_to_device(call, vars(layer)["_hf_hook"].execution_device)
