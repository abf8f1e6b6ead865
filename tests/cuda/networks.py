"""What stands in a TensorRT context's place in tests of the loop: a kernel."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge.engine.cuda.thread import checked
from export.manifest import Manifest, TensorSpec, Verification

SOURCE = Path(__file__).with_name("network.cu")
CHANNELS = {"enhanced": 1, "inverted": 1, "colour": 3}
TYPES = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_float, ctypes.c_float)
GAIN = {"enhanced": (1.0, 0.0), "inverted": (-1.0, 1.0), "colour": (1.0, 0.0)}


def manifest(outputs: Sequence[str] = ("enhanced",), **fields: Any) -> Manifest:
    """Of a network with these of `CHANNELS` as outputs."""
    return Manifest.model_validate(
        {
            "name": "gain",
            "task": "enhance",
            "file": "gain.onnx",
            "sha256": "0" * 64,
            "format": "onnx",
            "precision": "fp32",
            "inputs": (TensorSpec(name="image", shape=(1, 1, "height", "width"), dtype="float32", range=(0, 1)),),
            "outputs": tuple(
                TensorSpec(name=name, shape=(1, CHANNELS[name], "height", "width"), dtype="float32", range=(0, 1))
                for name in outputs
            ),
            "scale": 1,
            "halo_px": 0,
            "min_side_px": 1,
            "pixel_size_nm": 48,
            "training_data": "none",
            "checkpoint_sha256": "0" * 64,
            "verify": Verification(against="itself", max_abs_error=0, psnr_db=200, ssim=1, shapes_px=((16, 16),)),
            **fields,
        }
    )


class GainNetwork:
    """`enhanced` is the input, `inverted` is 1 less it, `colour` is red and blue of it; launched by cuda-bindings."""

    def __init__(self, shape: tuple[int, int], outputs: Sequence[str] = ("enhanced",)) -> None:
        import pycuda.driver as cuda
        from cuda.bindings import driver

        from edge.engine.cuda.kernels import compiled

        self._driver = driver
        cubin = compiled(SOURCE, "sm_{}{}".format(*cuda.Context.get_device().compute_capability()))
        self._module = checked(self._driver.cuModuleLoadData(cubin), "no module")
        self._network = checked(self._driver.cuModuleGetFunction(self._module, b"network"), "no kernel")
        self._pixels, self._outputs = shape[0] * shape[1], outputs
        self.bound: list[dict[str, int]] = []
        self.enqueued = 0
        self.before: Callable[[], None] = lambda: None
        self.default_stream = False

    def bind(self, addresses: Mapping[str, int]) -> None:
        self.bound.append(dict(addresses))

    def enqueue(self, stream: int) -> None:
        self.before()
        self.enqueued += 1
        (addresses,) = self.bound
        stream = 0 if self.default_stream else stream
        for name in self._outputs:
            values = (addresses["image"], addresses[name], self._pixels, CHANNELS[name], *GAIN[name])
            grid = -(-self._pixels // 128)
            checked(
                self._driver.cuLaunchKernel(self._network, grid, 1, 1, 128, 1, 1, 0, stream, (values, TYPES), 0),
                "not launched",
            )

    def close(self) -> None:
        checked(self._driver.cuModuleUnload(self._module), "not unloaded")
