"""Whether driver, kernel and the framework's CUDA belong together, and whether the GPUs compute; prints JSON findings.

The framework's own Python runs it, for it is the framework that has to compute.
"""

import ctypes
import json
import re
import subprocess
from importlib.metadata import distributions
from pathlib import Path

MOST_OFF = 0.01  # of the largest value: GPUs may multiply with 10 bits of precision
SIZE = 512
LOADED = Path("/proc/driver/nvidia/version")


def output(*words):
    """What a command prints; nothing where it is missing."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def finding(check, good, words, remedy=""):
    """One finding."""
    return {"check": check, "good": bool(good), "words": words, "remedy": "" if good else remedy}


def judged(loaded, installed, library, most, needed, kernel):
    """Findings about versions, of which each is "" when it is not known.

    loaded, installed: of the driver in the kernel, and of its module for that kernel. library: of its programs.
    most: the newest CUDA that the driver knows. needed: the CUDA of the framework's libraries. kernel: the release.
    """
    restart = "Restart the machine when no job runs: `provision admin drain`, then `provision admin gpu --reboot`."
    yield finding("driver", loaded, f"{loaded or 'none'} in the kernel {kernel}", restart)
    if installed:
        yield finding("driver's module", installed == loaded, f"{installed} for the kernel {kernel}", restart)
    if library:
        yield finding("driver's programs", library == loaded, library, restart)
    if needed:
        # libraries of CUDA work with each driver of their main release
        good = most and int(needed.split(".")[0]) <= int(most.split(".")[0])
        words = f"the framework needs {needed}, the driver knows {most or 'none'}"
        yield finding("CUDA", good, words, "`provision admin gpu --upgrade` installs a newer driver.")


def cuda_of_driver():
    """The newest CUDA that the driver knows, as 12.4; "" without one."""
    try:
        library, version = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    except OSError:
        return ""
    if library.cuDriverGetVersion(ctypes.byref(version)):
        return ""
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def cuda_of_framework():
    """The CUDA of the framework's own libraries; "" without any."""
    found = {
        dist.name: dist.version for dist in distributions() if re.fullmatch(r"nvidia-cuda-runtime(-cu\d+)?", dist.name)
    }
    return max(found.values(), default="")


def off(device):
    """How far a product of matrices on a device is from the processor's, relative to its largest value."""
    import numpy as np
    import tensorflow as tf

    left = np.random.default_rng(1).random((SIZE, SIZE), dtype=np.float32)
    with tf.device(device):
        product = tf.linalg.matmul(left, left).numpy()
    wanted = left.astype(np.float64) @ left
    return float(abs(product - wanted).max() / wanted.max())


def computations():
    """One finding for each GPU that the framework sees."""
    import tensorflow as tf

    seen = tf.config.list_physical_devices("GPU")
    if not seen:
        yield finding("computation", False, "the framework sees no GPU", "`nvidia-smi` and `dmesg` tell more.")
    for number in range(len(seen)):
        error = off(f"GPU:{number}")
        words = f"a product of {SIZE} x {SIZE} is {error:.1e} off"
        yield finding(f"computation on GPU {number}", error < MOST_OFF, words, "Do not use this GPU; look at `dmesg`.")


def main():
    """Look, compute, print."""
    try:
        text = LOADED.read_text()
    except OSError:
        text = ""
    loaded = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text)
    library = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()
    kernel = output("uname", "-r")
    versions = (output("modinfo", "-F", "version", "nvidia"), library[0].strip() if library else "")
    found = list(judged(loaded[1] if loaded else "", *versions, cuda_of_driver(), cuda_of_framework(), kernel))
    if loaded:
        found += computations()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
