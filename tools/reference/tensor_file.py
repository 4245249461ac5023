"""Read and write safetensors files with numpy alone.

The writer is deterministic (sorted names, sorted metadata, widest element type first so
that every tensor is aligned), which the safetensors package does not promise for metadata.
Format: u64 little-endian header length, JSON header, raw little-endian tensor data.
"""

import json
import struct

import numpy as np

TYPE_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "int8": "I8", "int32": "I32", "uint32": "U32", "int64": "I64"}
NUMPY_TYPES = {code: np.dtype(name) for name, code in TYPE_NAMES.items()}


def write(path, tensors, metadata):
    """Write `tensors` (name -> array) with string `metadata` to `path`."""
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name in order:
        array = tensors[name]
        header[name] = {
            "dtype": TYPE_NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(np.ascontiguousarray(tensors[name]).tobytes())


def parse(data):
    """Tensors (name -> array) and metadata of the bytes of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    body = data[8 + length :]
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = np.frombuffer(body[begin:end], NUMPY_TYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors, metadata


def read(path):
    """Tensors and metadata of the safetensors file at `path`."""
    with open(path, "rb") as file:
        return parse(file.read())
