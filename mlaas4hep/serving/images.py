"""Images as the tensors of a network, as TFaaS makes them: PNG and JPEG, values from 0 to 255.

An image that has not the size that the network takes is brought to it.
"""

from __future__ import annotations

import importlib
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.serving.runtime import TensorSpec

_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
_MOST_PIXELS = 64 * 2**20


def image_tensor(content: bytes, spec: TensorSpec) -> NDArray[Any]:
    """An image as a tensor of shape (1, height, width, channels) or (1, channels, height, width), as `spec` has it.

    Raises UsageError for what is no such image, and for a network that takes none.
    """
    try:
        pillow = importlib.import_module("PIL.Image")
    except ImportError as error:
        raise MlaasError("Images cannot be read here: the package pillow is not installed.") from error

    sizes = spec.shape[1:]
    last = len(sizes) == 3 and sizes[2] in _CHANNELS
    if len(sizes) != 3 or not (last or sizes[0] in _CHANNELS):
        raise UsageError(f"The model takes {list(spec.shape)}, which is no image.")
    height, width, channels = sizes if last else (sizes[1], sizes[2], sizes[0])
    try:
        with pillow.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise UsageError(f"The image has {image.width} times {image.height} pixels.", "Make it smaller.")
            size = (image.width if width < 0 else width, image.height if height < 0 else height)
            if size[0] * size[1] > _MOST_PIXELS:
                raise UsageError(f"The network takes images of {size[0]} times {size[1]} pixels.")
            fitted = image.convert(_CHANNELS[channels])
            if size != image.size:
                fitted = fitted.resize(size, pillow.Resampling.BILINEAR)
            values = np.asarray(fitted, dtype=np.float32).reshape(size[1], size[0], channels)
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise UsageError("The file image is no PNG or JPEG.") from error
    return (values if last else values.transpose(2, 0, 1))[None].astype(spec.dtype)
