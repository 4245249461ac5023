"""Convert the musicnn taggers (MTT and MSD) from the PyPI wheel to safetensors.

    python convert_musicnn.py musicnn-0.1.0-py3-none-any.whl --out ../../models/tiny/tagger

Needs numpy only. The TensorFlow 1 "V2 bundle" is parsed here: `.index` is a LevelDB-style
table of protobuf entries, `.data-00000-of-00001` holds raw little-endian f32.

Kernels are stored as f16 under their published names and shapes (HWIO); biases stay f32.
Every batch normalisation becomes `scale` and `shift` in f32, because some moving variances
are near 1e-25 and leave the range of f16:
    scale = gamma / sqrt(variance + 1e-3),  shift = beta - mean * scale
"""

import argparse
import hashlib
import json
import pathlib
import struct
import zipfile

import numpy as np

import tensor_file

TABLE_MAGIC = 0xDB4775248B80FB57
EPSILON = 1e-3
CONVOLUTIONS = ["conv2d"] + [f"conv2d_{i}" for i in range(1, 8)]
NORMALISATIONS = ["batch_normalization"] + [f"batch_normalization_{i}" for i in range(1, 11)]
DENSE = ["dense", "dense_1"]

# Scalars of the input normalisation (beta, gamma, mean, variance) to four decimals: they
# tell the two models apart and show at once when the bundle was parsed wrongly.
INPUT_SCALARS = {
    "MTT_musicnn": (0.0356, 0.3238, 1.5940, 1.7469),
    "MSD_musicnn": (-0.1637, 0.5536, 2.1978, 1.5852),
}


def varint(data, at):
    """One base-128 integer of `data` at `at`, and the position behind it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def table_block(data, offset, size):
    """(key, value) pairs of one block; keys share prefixes with their predecessor."""
    if data[offset + size] != 0:
        raise ValueError("compressed table block: only uncompressed bundles are known")
    block = data[offset : offset + size]
    (restarts,) = struct.unpack("<I", block[-4:])
    end = len(block) - 4 - 4 * restarts
    at, key = 0, b""
    while at < end:
        shared, at = varint(block, at)
        fresh, at = varint(block, at)
        length, at = varint(block, at)
        key = key[:shared] + block[at : at + fresh]
        at += fresh
        yield key, block[at : at + length]
        at += length


def protobuf(message):
    """Fields of a protobuf message as a list of (number, value)."""
    at, fields = 0, []
    while at < len(message):
        tag, at = varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = varint(message, at)
        elif wire == 2:
            length, at = varint(message, at)
            value, at = message[at : at + length], at + length
        elif wire == 5:
            value, at = message[at : at + 4], at + 4
        elif wire == 1:
            value, at = message[at : at + 8], at + 8
        else:
            raise ValueError(f"protobuf wire type {wire}")
        fields.append((number, value))
    return fields


def read_bundle(index, data):
    """Tensors (name -> f32 array) of a TensorFlow V2 checkpoint bundle."""
    footer = index[-48:]
    if struct.unpack("<Q", footer[-8:])[0] != TABLE_MAGIC:
        raise ValueError("not a TensorFlow bundle index (wrong magic)")
    at = 0
    _, at = varint(footer, at)
    _, at = varint(footer, at)
    offset, at = varint(footer, at)
    size, at = varint(footer, at)
    tensors = {}
    for _, handle in table_block(index, offset, size):
        block_offset, position = varint(handle, 0)
        block_size, _ = varint(handle, position)
        for key, value in table_block(index, block_offset, block_size):
            if key == b"":
                continue
            fields = dict(protobuf(value))
            if fields.get(1) != 1:
                continue  # not float32
            shape = []
            for number, dimension in protobuf(fields.get(2, b"")):
                if number == 2:
                    shape.append(dict(protobuf(dimension)).get(1, 0))
            begin, length = fields.get(4, 0), fields.get(5, 0)
            if length != 4 * int(np.prod(shape, dtype=np.int64)):
                raise ValueError(f"{key!r}: {length} bytes for shape {shape}")
            array = np.frombuffer(data[begin : begin + length], "<f4").reshape(shape)
            tensors[key.decode()] = array
    return tensors


def read_model(wheel, model):
    """Network tensors of `model` in the wheel, optimiser slots left out, and the data hash."""
    with zipfile.ZipFile(wheel) as archive:
        index = archive.read(f"musicnn/{model}/.index")
        data = archive.read(f"musicnn/{model}/.data-00000-of-00001")
    tensors = read_bundle(index, data)
    wanted = [f"{layer}/{part}" for layer in CONVOLUTIONS + DENSE for part in ("kernel", "bias")]
    wanted += [
        f"{layer}/{part}" for layer in NORMALISATIONS for part in ("beta", "gamma", "moving_mean", "moving_variance")
    ]
    network = {name: tensors[name] for name in wanted}
    first = NORMALISATIONS[0]
    found = [float(network[f"{first}/{part}"][0]) for part in ("beta", "gamma", "moving_mean", "moving_variance")]
    if not np.allclose(found, INPUT_SCALARS[model], atol=5e-5):
        raise ValueError(f"{model}: input scalars {found} differ from the published {INPUT_SCALARS[model]}")
    return network, hashlib.sha256(data).hexdigest()


def read_labels(wheel, model):
    """Tag names of the model, from the package's configuration module (read, not run)."""
    import ast

    with zipfile.ZipFile(wheel) as archive:
        module = ast.parse(archive.read("musicnn/configuration.py").decode())
    name = f"{model[:3]}_LABELS"
    for statement in module.body:
        if isinstance(statement, ast.Assign) and statement.targets[0].id == name:
            return ast.literal_eval(statement.value)
    raise ValueError(f"{name} not found in the wheel")


def fold(network):
    """Batch normalisations as f32 scale and shift, kernels as f16, biases as f32."""
    out = {}
    for layer in CONVOLUTIONS + DENSE:
        kernel = network[f"{layer}/kernel"]
        half = kernel.astype(np.float16)
        if not np.isfinite(half).all():
            raise ValueError(f"{layer}/kernel leaves the range of f16")
        out[f"{layer}/kernel"] = half
        out[f"{layer}/bias"] = network[f"{layer}/bias"].astype(np.float32)
    for layer in NORMALISATIONS:
        part = {name: network[f"{layer}/{name}"].astype(np.float64) for name in ("beta", "gamma", "moving_mean", "moving_variance")}
        scale = part["gamma"] / np.sqrt(part["moving_variance"] + EPSILON)
        out[f"{layer}/scale"] = scale.astype(np.float32)
        out[f"{layer}/shift"] = (part["beta"] - part["moving_mean"] * scale).astype(np.float32)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel")
    parser.add_argument("--out", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for model, name in (("MTT_musicnn", "mtt"), ("MSD_musicnn", "msd")):
        network, digest = read_model(arguments.wheel, model)
        tensors = fold(network)
        metadata = {
            "format": "mambo-musicnn-1",
            "model": model,
            "tags": json.dumps(read_labels(arguments.wheel, model)),
            "source": "PyPI wheel musicnn 0.1.0, converted by tools/reference/convert_musicnn.py",
            "source_sha256": digest,
            "licence": "ISC, (c) Music Technology Group, Universitat Pompeu Fabra 2019",
        }
        path = arguments.out / f"{name}.safetensors"
        tensor_file.write(path, tensors, metadata)
        worst = max(
            float(np.abs(network[f"{layer}/kernel"] - tensors[f"{layer}/kernel"].astype(np.float32)).max())
            for layer in CONVOLUTIONS + DENSE
        )
        print(f"{path}: {path.stat().st_size} bytes, largest kernel rounding {worst:.2e}")
    with zipfile.ZipFile(arguments.wheel) as archive:
        licence = archive.read("musicnn-0.1.0.dist-info/LICENSE.md").decode().strip() + "\n"
    (arguments.out / "LICENSE").write_text(licence)


if __name__ == "__main__":
    main()
