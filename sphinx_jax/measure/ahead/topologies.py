"""Machines that are not here, as compilers know them: TPU slices and hosts of H100s."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from unittest import mock

import jax
from jax.experimental.topologies import get_topology_desc
from jax.sharding import Mesh

from sphinx_jax.config import ConfigError, unknown
from sphinx_jax.model.flops import PEAKS

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One device as JAX counts them, which is a chip; from the vendors' data sheets."""

    kind: str
    hbm: float  # bytes that a program may use
    bandwidth: float  # bytes a second, of the memory
    links: float  # bytes a second, of all links between chips, one direction

    @property
    def flops(self) -> float:
        """bf16 dense, a second."""
        return PEAKS[self.kind]


# memory of a TPU as its compiler says, of a GPU what JAX takes at XLA_PYTHON_CLIENT_MEM_FRACTION=.95
CHIPS = {
    "v4": Chip("TPU v4", 30.75 * GIB, 1228e9, 300e9),
    "v5e": Chip("TPU v5 lite", 15.75 * GIB, 819e9, 200e9),
    "v5p": Chip("TPU v5", 95.74 * GIB, 2765e9, 600e9),
    "v6e": Chip("TPU v6 lite", 31.25 * GIB, 1640e9, 400e9),
    "h100": Chip("NVIDIA H100", 0.95 * 79.11 * GIB, 3352e9, 450e9),
}
EXAMPLES = ("v4:4x4x4", "v5e:16x16", "v5p:4x4x4", "v6e:16x16", "h100:8", "h100:4x8")
BETWEEN_HOSTS = 50e9  # bytes a second of a GPU's network card, 400 Gbit/s

# what XLA asks of a CUDA device that it compiles for: the sizes of an H100 SXM
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  shared_memory_per_core: 233472  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  l2_cache_size: 52428800  memory_bandwidth: 3352320000000  device_memory_size: 84942979072
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def open_topology(name: str) -> tuple[Sequence[jax.Device], Chip]:
    """Devices of a topology, none of which is here: `v5e:16x16`, or `h100:4x8`, four hosts of eight.

    Raises ConfigError for a name that the compiler does not know, or without the compiler.
    """
    kind, _, sizes = name.partition(":")
    chip = CHIPS.get(kind)
    if chip is None or not sizes:
        raise unknown("topology", name, EXAMPLES)
    return (_gpus if kind == "h100" else _tpus)(name, sizes.split("x"), chip)


def _tpus(name: str, sizes: list[str], chip: Chip) -> tuple[Sequence[jax.Device], Chip]:
    options = {}
    if set(sizes) == {"1"}:  # hosts have four chips and more, but for machines of one
        options["chips_per_host_bounds"] = [1, 1, 1]
    if name.startswith("v4"):  # the two cores of a chip as one device, as Cloud TPU gives them
        options["chip_config_name"] = "megacore"
    try:
        return get_topology_desc(platform="tpu", topology_name=name, **options).devices, chip
    except Exception as error:
        if "libtpu" in str(error) or isinstance(error, ImportError):
            raise ConfigError("compiling for a TPU takes its compiler; pip install 'sphinx_jax[tpu]'") from error
        raise ConfigError(f"topology {name}: {str(error).splitlines()[0]}") from error


def _gpus(name: str, sizes: list[str], chip: Chip) -> tuple[Sequence[jax.Device], Chip]:
    if len(sizes) > 2 or not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise ConfigError(f"topology {name}: say h100:GPUS or h100:HOSTSxGPUS, such as h100:8 or h100:4x8")
    hosts, gpus = ("1", *sizes)[-2:]
    if int(hosts) > 1:
        chip = dataclasses.replace(chip, links=BETWEEN_HOSTS)
    try:
        found = get_topology_desc(
            platform="cuda", topology_name="h100", topology=f"1x{hosts}x{gpus}", target_config=H100
        )
    except Exception as error:
        raise ConfigError(
            "compiling for a GPU takes XLA's CUDA plugin; where there is no GPU, "
            f"pip install --no-deps jax-cuda12-plugin=={jax.__version__} jax-cuda12-pjrt=={jax.__version__}"
        ) from error
    return found.devices, chip


@contextlib.contextmanager
def lowering_for(mesh: Mesh) -> Iterator[None]:
    """Where there is no GPU, JAX finds no cuDNN to ask for its version before it lowers to cuDNN's attention."""
    if mesh.devices.flat[0].platform != "gpu" or jax.default_backend() == "gpu":
        yield
        return
    from jax._src.cudnn import fused_attention_stablehlo

    with mock.patch.object(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000):
        yield
