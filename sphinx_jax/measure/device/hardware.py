"""The device at hand: its name, versions, memory, and the bandwidth that its data sheet promises.

What a device says of itself differs by platform and version: each answer may be missing.
"""

from __future__ import annotations

import subprocess
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

from sphinx_jax.measure.ahead.topologies import CHIPS
from sphinx_jax.model.flops import best_seconds
from sphinx_jax.sharding import platform

# bytes a second of one device's memory, from the vendors' data sheets
BANDWIDTHS = {chip.kind: chip.bandwidth for chip in CHIPS.values()} | {
    "TPU v5e": 819e9,
    "TPU v5p": 2765e9,
    "TPU v6e": 1640e9,
    "NVIDIA H100 PCIe": 2000e9,
    "NVIDIA H100 NVL": 3900e9,
    "NVIDIA H200": 4800e9,
    "NVIDIA B200": 8000e9,
    "NVIDIA A100-SXM4-80GB": 2039e9,
    "NVIDIA A100 80GB PCIe": 1935e9,
    "NVIDIA A100": 1555e9,
    "NVIDIA L40S": 864e9,
    "NVIDIA L4": 300e9,
    "NVIDIA A10": 600e9,
    "Tesla T4": 320e9,
    "Tesla V100": 900e9,
    "NVIDIA GeForce RTX 4090": 1008e9,
    "NVIDIA GeForce RTX 3090": 936e9,
}


def describe() -> dict[str, Any]:
    """Name, number and memory of the devices, and the versions that numbers depend on."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "count": len(jax.devices()),
        "memory": device_memory(),
        "jax": jax.__version__,
        "jaxlib": metadata.version("jaxlib"),
        "driver": driver(),
    }


def driver() -> str:
    """Version of a GPU's driver, or of a TPU's library; empty where it is not to be had."""
    if platform() == "tpu":
        try:
            return f"libtpu {metadata.version('libtpu')}"
        except metadata.PackageNotFoundError:
            return ""
    found = _nvidia("driver_version") if platform() == "gpu" else ""
    return f"driver {found}" if found else ""


def memory_stats() -> dict[str, int]:
    """What the first device says of its memory; empty where it says nothing (a CPU, some allocators)."""
    try:
        found = jax.local_devices()[0].memory_stats() or {}
    except Exception:  # a platform without such a question raises an error of its own kind
        found = {}
    return {key: value for key, value in found.items() if value > 0}


def device_memory() -> int | None:
    """Bytes that programs may use on one device; None on a CPU and where nobody knows."""
    if platform() == "cpu":
        return None
    if limit := memory_stats().get("bytes_limit"):
        return limit
    if (total := _nvidia("memory.total")).split(" ")[0].isdigit():
        return int(0.9 * int(total.split(" ")[0]) * 2**20)
    kind = jax.devices()[0].device_kind
    return next((int(chip.hbm) for chip in CHIPS.values() if chip.kind == kind), None)


def peak_gib() -> float | None:
    """The most memory in use so far on the first device."""
    peak = memory_stats().get("peak_bytes_in_use")
    return None if peak is None else peak / 2**30


def known_bandwidth(kind: str) -> float | None:
    """The data sheet's bytes a second, of the longest name that a device's begins with, by whole words."""
    fitting = [name for name in BANDWIDTHS if kind.startswith(name) and not kind[len(name) : len(name) + 1].isalnum()]
    return BANDWIDTHS[max(fitting, key=len)] if fitting else None


def bandwidth() -> tuple[float, str]:
    """Bytes a second of one device's memory, and where the number is from: a data sheet, or a copy made here."""
    if found := known_bandwidth(jax.devices()[0].device_kind):
        return found, "data sheet"
    size = min(2**30, (device_memory() or 2**30) // 16)
    x = jnp.zeros(size // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    copy(x).block_until_ready()
    return 2 * size / best_seconds(copy, x), "a copy"


def _nvidia(what: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip().split("\n")[0]
    except (OSError, subprocess.TimeoutExpired):
        return ""
