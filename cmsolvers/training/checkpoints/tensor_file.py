"""Tensors as the bytes of a safetensors file, one tensor in memory at a time.

safetensors' own writer needs copies of all tensors at once and tells nobody what bytes it wrote.
Here they are handed on piece by piece, so that they are hashed while they are written. What reads
them again is safetensors.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping

import safetensors.torch
import torch
from torch import Tensor

from cmsolvers.training.checkpoints.errors import CheckpointError

# https://huggingface.co/docs/safetensors: dtypes by their names in a header.
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_RESERVED = "__metadata__"


def stored(name: str, value: object) -> Tensor:
    """The plain tensor that stands for `value` in a file; a complex one as [..., 2] real numbers.

    Raises:
        TypeError: no tensor, or one of a kind that a file cannot hold.
        ValueError: a tensor without data, or a name that a file cannot hold.
    """
    member = name.split("/", 1)[-1]
    if member == _RESERVED or any("\ud800" <= letter <= "\udfff" for letter in member):
        raise ValueError(f"names of tensors must be text other than {_RESERVED}; got {member!r}")
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor; got an object of type {type(value).__name__}")
    value = value.detach()
    if type(value) is not Tensor:
        raise TypeError(
            f"{name} must be a plain tensor; got a {type(value).__name__}: gather it first"
        )
    if value.layout is not torch.strided or value.is_nested or value.is_quantized:
        raise TypeError(f"{name} must be a plain strided tensor; got {value.layout} {value.dtype}")
    if value.device.type == "meta":
        raise ValueError(f"{name} must be on a device that holds data; got device meta")
    value = value.resolve_conj().resolve_neg()
    if value.is_complex():
        value = torch.view_as_real(value)
    if value.dtype not in DTYPES:
        raise TypeError(f"{name} must be of a dtype that safetensors knows; got {value.dtype}")
    return value


def stored_bytes(groups: Mapping[str, Mapping[str, Tensor]]) -> int:
    """About how many bytes a checkpoint of these groups takes on disk."""
    tensors = [value for members in groups.values() for value in members.values()]
    # A kilobyte per tensor is more than any header needs, a page more than any file wastes.
    return sum(t.numel() * t.element_size() + 1024 for t in tensors) + 4096 * (len(groups) + 3)


def pieces(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The bytes of a safetensors file with these tensors, each in the form of `stored`."""
    # Wide dtypes first keeps every tensor aligned to its elements.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {}
    end = 0
    for name in order:
        value = tensors[name]
        start, end = end, end + value.numel() * value.element_size()
        shape = list(value.shape)
        header[name] = {"dtype": DTYPES[value.dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(struct.pack("<Q", len(text)) + text)
    for name in order:
        if tensors[name].numel():
            flat = tensors[name].cpu().contiguous().reshape(-1)
            yield flat.view(torch.uint8).numpy().data


def parse(data: bytes, complex_names: list[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Args:
        data: the whole file.
        complex_names: those that stand for complex tensors.

    Raises:
        CheckpointError: not such a file.
    """
    try:
        tensors = safetensors.torch.load(data)
        for name in complex_names:
            tensors[name] = torch.view_as_complex(tensors[name])
    except Exception as error:  # of many kinds; the file's owner can do the same about each
        raise CheckpointError(f"holds no tensors of this library: {error}") from error
    return tensors
