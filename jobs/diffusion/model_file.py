"""The file of a trained model: weights, and in its metadata what it takes to build the network.

A model comes from strangers, as a dataset does. The format is safetensors, which holds numbers and
no code, and nothing is built or read into memory before it is known to be what it should be.
Child only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from child.context import JobFailed
from jobs.diffusion.unet import UNet

MODEL: Final = "model.safetensors"
#: Where in the metadata the description is: one entry only, because several have no fixed order.
KEY: Final = "diffusion_model"
#: The largest network has some 200 tensors, at about 100 bytes of header each.
MAX_HEADER_BYTES: Final = 1 << 20


class Description(BaseModel, frozen=True, extra="forbid", strict=True):
    """All that has to be known beside the weights; the limits are those of `train_diffusion`."""

    network: Literal["unet"] = "unet"
    sampler: Literal["rectified_flow"] = "rectified_flow"
    image_size: Annotated[int, Field(ge=8, le=256)]
    colors: Literal[1, 3]
    channels: Annotated[int, Field(ge=8, le=256, multiple_of=8)]

    def build(self) -> UNet:
        """The network, untrained."""
        return UNet(self.image_size, self.colors, self.channels)


def save_network(network: UNet, description: Description, path: Path) -> None:
    """Write what `load_network` reads."""
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    # with every field, so that a default that changes one day changes no old model
    save_file(weights, path, metadata={KEY: json.dumps(description.model_dump())})


def load_network(path: Path, device: torch.device) -> tuple[UNet, Description]:
    """The trained network of `path`, on `device`, ready to be asked.

    Raises JobFailed: model_unknown, if it is sound but no model that `train_diffusion` wrote;
    model_broken.
    """
    _check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            description = _description(file.metadata() or {})
            network = _outline(description)
            _check_tensors(file, network)
            # Copies: what it hands out is the file itself, which may change while they are kept.
            weights = {name: file.get_tensor(name).clone() for name in network.state_dict()}
    except (SafetensorError, OSError, ValueError) as error:
        raise JobFailed(
            "model_broken", f"{path.name!r} is no sound safetensors: {error}"
        ) from error
    if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise JobFailed("model_broken", f"{path.name!r} has weights that are no numbers.")
    network.load_state_dict(weights, assign=True)
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stubs lack it
    return network.eval().requires_grad_(False), description


def _check_header(path: Path) -> None:
    """Refuse a header that would be long to read. Raises JobFailed: model_broken."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise JobFailed("model_broken", f"{path.name!r} is no safetensors of a model.")


def _description(metadata: dict[str, str]) -> Description:
    if KEY not in metadata:
        raise JobFailed("model_unknown", "The model was not made by `train_diffusion`.")
    try:
        return Description.model_validate_json(metadata[KEY])
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        sentence = f"The model's description is not one of ours: {where} {fault['msg']}"
        raise JobFailed("model_unknown", sentence) from None


def _outline(description: Description) -> UNet:
    """The network with shapes and without memory."""
    with torch.device("meta"):
        return description.build()


def _check_tensors(file: Any, network: UNet) -> None:
    """Raises JobFailed model_unknown, before anything is read, unless all tensors are as wanted."""
    wanted: dict[str, Tensor] = network.state_dict()
    names = set(file.keys())
    for name in sorted(names ^ wanted.keys()):
        sentence = f"The model {'has' if name in names else 'lacks'} a tensor {name[:100]!r}."
        raise JobFailed("model_unknown", sentence)
    for name, tensor in wanted.items():
        found = file.get_slice(name)
        if found.get_dtype() != "F32" or found.get_shape() != list(tensor.shape):
            raise JobFailed("model_unknown", f"Its tensor {name!r} has another shape or type.")
