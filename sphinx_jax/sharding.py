"""Meshes, and the one table of logical axis rules."""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sphinx_jax.config import ConfigError, DecoderConfig

MESH_AXES = ("data", "fsdp", "tensor", "expert")

# logical axis -> mesh axes.  A dimension that its mesh axes do not divide stays whole (few key/value heads, odd
# widths).
RULES: dict[str | None, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "expert"),
    "embed": ("fsdp",),
    "channels": ("fsdp",),
    "ffn": ("tensor",),
    "expert": ("expert",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "vocab": ("tensor",),
    "layers": (),
    None: (),
}


def make_mesh(
    data: int = 1, fsdp: int = -1, tensor: int = 1, expert: int = 1, devices: list[jax.Device] | None = None
) -> Mesh:
    """A (data, fsdp, tensor, expert) mesh over all devices; one axis may be -1 and takes what is left.

    Chips of a TPU are ordered so that an axis follows the links between them.
    """
    devices = devices if devices is not None else jax.devices()
    sizes = dict(zip(MESH_AXES, (data, fsdp, tensor, expert), strict=True))
    for axis, size in sizes.items():
        if size < 1 and size != -1:
            raise ConfigError(f"mesh: {axis} must be at least 1, or -1 for what is left, not {size}")
    left = [axis for axis, size in sizes.items() if size == -1]
    if len(left) > 1:
        raise ConfigError(f"mesh {sizes}: only one axis may be -1")
    fixed = math.prod(size for size in sizes.values() if size > 0)
    if left:
        if len(devices) % fixed:
            given = " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1)
            raise ConfigError(f"mesh: {given} does not divide {len(devices)} devices")
        sizes[left[0]] = len(devices) // fixed
    elif fixed != len(devices):
        raise ConfigError(f"mesh {sizes} does not cover {len(devices)} devices; let one axis be -1")
    shape = tuple(sizes.values())
    if getattr(devices[0], "platform", "") == "tpu":
        from jax.experimental.mesh_utils import create_device_mesh

        placed = create_device_mesh(shape, list(devices), allow_split_physical_axes=True)
    else:
        placed = np.asarray(devices).reshape(shape)
    return Mesh(placed, MESH_AXES, axis_types=(AxisType.Auto,) * 4)


def serving_mesh(decoder: DecoderConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh for answering: for each token a device reads its share of every weight, and gathers none."""
    devices = devices if devices is not None else jax.devices()
    return make_mesh(**serving_sizes(decoder, len(devices)), devices=devices)


def serving_sizes(decoder: DecoderConfig, count: int) -> dict[str, int]:
    """Sizes of such a mesh of `count` devices: `tensor` is as many of them as heads and FFN are divided by.

    What is left takes experts, or copies that rows are shared out to.  Experts too are cut along `tensor` first: of
    those that a token chose every device has a part then.
    """
    tensor = max(n for n in range(1, count + 1) if count % n == decoder.heads % n == decoder.ffn_dim % n == 0)
    expert = math.gcd(count // tensor, decoder.moe.experts) if decoder.moe else 1
    return {"data": count // tensor // expert, "fsdp": 1, "tensor": tensor, "expert": expert}


def partition_spec(names: tuple[str | None, ...] | None, shape: tuple[int, ...], mesh: Any) -> PartitionSpec:
    """Logical names of an array's dimensions -> the mesh axes they lie on."""
    if not names:
        return PartitionSpec()
    spec, used = [], set()
    for name, size in zip(names, shape, strict=True):
        axes = tuple(a for a in RULES[name] if a in mesh.shape and mesh.shape[a] > 1 and a not in used)
        if not axes or size % math.prod(mesh.shape[a] for a in axes):
            spec.append(None)
            continue
        used.update(axes)
        spec.append(axes if len(axes) > 1 else axes[0])
    return PartitionSpec(*spec)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Pin an activation's layout where a mesh is in force; without one this is the identity."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(names, x.shape, mesh))


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and layout of a tree of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def device_bytes(tree: Any) -> int:
    """Bytes that arrays, perhaps abstract ones, take on each device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * jax.dtypes.itemsize_bits(x.dtype) // 8
        for x in jax.tree.leaves(tree)
    )


def row_ways(mesh: Mesh) -> int:
    """How many parts the rows of a batch are cut into."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def row_sharding(mesh: Mesh) -> NamedSharding:
    """How a batch lies on the devices: cut along its rows."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def row_share(mesh: Mesh) -> tuple[int, int]:
    """Which share of a batch's rows this process feeds, and how many shares there are.

    Processes whose devices differ along `tensor` alone feed the same rows.

    Raises:
      ConfigError: the rows of two processes overlap in part.
    """
    ways = row_ways(mesh)
    place = row_sharding(mesh).devices_indices_map((ways,))
    held: dict[int, set[int]] = {}
    for device, (rows,) in place.items():
        held.setdefault(device.process_index, set()).update(range(*rows.indices(ways)))
    shares = sorted({tuple(sorted(rows)) for rows in held.values()})
    if sum(map(len, shares)) != ways:
        raise ConfigError(
            f"mesh {dict(mesh.shape)} does not share rows out evenly over {len(held)} processes; let tensor (and what "
            "is left) divide the devices of a process, or be a multiple of them"
        )
    return shares.index(tuple(sorted(held[jax.process_index()]))), len(shares)


def platform() -> str:
    """What programs are being made for: `cpu`, `gpu` or `tpu`; on a mesh of devices that are not here, theirs."""
    there = jax.sharding.get_abstract_mesh().abstract_device
    name = there.platform if there is not None else jax.default_backend()
    return "gpu" if name in ("cuda", "rocm") else name


def has_cudnn_attention() -> bool:
    """Whether the GPUs that programs are being made for are NVIDIA's, from Ampere on: older ones and AMD's lack it."""
    if jax.sharding.get_abstract_mesh().abstract_device is not None:  # those that are not here are Hopper's
        return True
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    return bool(re.fullmatch(r"\d+\.\d+", capability)) and float(capability) >= 8
