"""Models larger than one device: accelerate places their layers on GPUs, in memory and on disk.

What lies on disk stays in the model's own safetensors files and is read when it is run; weights that transformers
converts while loading (experts that are stored one by one) are written to a folder that goes with the model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import infer_auto_device_map
from accelerate.hooks import AlignDevicesHook, remove_hook_from_module
from accelerate.utils import send_to_device
from torch import Tensor, nn

from swm.workspace.machine import free_memory_bytes

SHARE = 0.8  # of a device's free memory that weights may take: states and a merged layer need some too
Room = dict[int | str, int]


def room_here() -> Room:
    """Bytes that weights may take on each GPU and in memory."""
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    room: Room = {gpu: int(SHARE * torch.cuda.mem_get_info(gpu)[0]) for gpu in gpus}
    return {**room, "cpu": int(SHARE * free_memory_bytes())}


def free_bytes_on(device: torch.device) -> int:
    """Memory that is free where a model runs."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free_memory_bytes()


def device_map(skeleton: nn.Module, layers: list[nn.Module], dtype: torch.dtype, room: Room) -> dict[str, Any] | None:
    """Where each part of a model goes; None if the first device has room for all of it.

    Args:
        skeleton: the model on the meta device.
        layers: its decoder layers, which are never divided.
        room: as from `room_here`, the fastest device first; what finds none goes to disk.
    """
    needed = sum(weight.numel() for weight in skeleton.parameters()) * dtype.itemsize
    if needed <= next(iter(room.values())):
        return None
    kinds = sorted({type(layer).__name__ for layer in layers})
    return dict(infer_auto_device_map(skeleton, dict(room), kinds, dtype=dtype))  # type: ignore[arg-type]


def is_offloaded(model: nn.Module) -> bool:
    """Whether parts of the model lie on several devices or on disk."""
    return bool(getattr(model, "hf_device_map", None)) and any("_hf_hook" in vars(part) for part in model.modules())


def weights_of(layer: nn.Module) -> Mapping[str, Tensor]:
    """The layer's parameters by name; those that accelerate keeps elsewhere are fetched each time they are asked for,
    to where the layer runs."""
    return _Fetched(layer) if any(_offloading(module) for module in layer.modules()) else dict(layer.named_parameters())


class _Fetched(Mapping[str, Tensor]):
    def __init__(self, layer: nn.Module) -> None:
        self._layer, self._known = layer, dict(layer.named_parameters())

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def __getitem__(self, name: str) -> Tensor:
        path, _, own = name.rpartition(".")
        hook, known = _offloading(self._layer.get_submodule(path)), self._known[name]
        return hook.weights_map[own].to(hook.execution_device, known.dtype) if hook else known


def _offloading(module: nn.Module) -> Any:
    """What fetches a module's own weights when it is run; None if they are there."""
    hook = vars(module).get("_hf_hook")
    return hook if isinstance(hook, AlignDevicesHook) and hook.offload else None


def bare(layer: nn.Module) -> nn.Module:
    """The layer without what accelerate hung on it: to be called with weights of one's own."""
    kept = [*layer.parameters(), *layer.buffers()]
    kept += [vars(module)["_hf_hook"] for module in layer.modules() if "_hf_hook" in vars(module)]
    alone = copy.deepcopy(layer, {id(each): each for each in kept})
    return remove_hook_from_module(alone, recurse=True)


def brought(layer: nn.Module, call: Any) -> Any:
    """Arguments of a call, brought to the device where the layer runs."""
    return send_to_device(call, vars(layer)["_hf_hook"].execution_device)
