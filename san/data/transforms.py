"""Resizing, and the training augmentation (docs/method.md#8.5, #8.6), on NumPy and Pillow.

Images are (H, W, 3) uint8 RGB, label maps (H, W) int32, sizes (height, width). The passed generator is the only source
of randomness.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from san.io.image_files import check_same_size
from san.record import FieldError, Options, option

Array = npt.NDArray[Any]
IMAGE_SIDE: dict[str, Any] = {"least": 1, "most": 8192}
"""Constraint for the side of a training image, in pixels."""


def resize_short_side(height: int, width: int, short_side: int, max_size: int) -> tuple[int, int]:
    """Return the size with the given short side, reduced if the long side would exceed `max_size`; rounded half up.

    Returns:
        (height, width), as in docs/method.md#8.6.
    """
    scale = short_side / min(height, width)
    new_height, new_width = height * scale, width * scale
    if max(new_height, new_width) > max_size:
        scale = max_size / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def resize_image(image: Array, size: tuple[int, int]) -> Array:
    """Resize (H, W, 3) uint8 bilinearly to (height, width), with Pillow's antialias when shrinking."""
    return np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


@dataclass(frozen=True)
class AugmentationConfig(Options):
    """Options of `TrainAugmentation`; the defaults are the published values (docs/method.md#8.5).

    Code that adds up to 18 to OpenCV's 8-bit hue (in units of 2 degrees) corresponds to a `hue_degrees` of 36.

    Raises:
        FieldError: a value is outside its range.
    """

    PLACE: ClassVar[str] = "augmentation."
    short_sides: tuple[int, ...] = option(
        tuple(range(320, 961, 64)), "short side after the resize, one drawn per image, pixels", **IMAGE_SIDE
    )
    max_size: int = option(2560, "largest long side after the resize, pixels", least=1, most=10**6)
    crop_size: tuple[int, int] = option((640, 640), "(height, width) of the random crop, pixels", **IMAGE_SIDE)
    brightness: float = option(32.0, "largest shift of pixel values, of 255", least=0, most=255)
    contrast: tuple[float, float] = option((0.5, 1.5), "range of the factor on pixel values", least=0, most=1000)
    saturation: tuple[float, float] = option((0.5, 1.5), "range of the factor on saturation", least=0, most=1000)
    hue_degrees: float = option(18.0, "largest turn of the hue, degrees", least=0, most=360)
    color_prob: float = option(0.5, "probability of each of these four; 0 switches them off", least=0, most=1)
    flip_prob: float = option(0.5, "probability of a mirror image", least=0, most=1)
    image_pad: int = 128
    ignore_label: int = 255

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.short_sides:
            raise FieldError("augmentation.short_sides is empty; give one side or more", "augmentation.short_sides")
        for name in ("contrast", "saturation"):
            low, high = getattr(self, name)
            if low > high:
                place = f"augmentation.{name}"
                raise FieldError(f"{place} is ({low}, {high}) but must be a range of factors, 0 <= low <= high", place)


class TrainAugmentation:
    """Resize, crop, photometric distortion, flip, pad: docs/method.md#8.5.

    Only the crop is resized: the result equals the crop of the resized image at a fraction of the time.
    """

    def __init__(self, config: AugmentationConfig | None = None) -> None:
        self.config = config or AugmentationConfig()

    def __call__(self, image: Array, label_map: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """Augment an image and its label map in the same way.

        Args:
            image: (H, W, 3) uint8 RGB.
            label_map: (H, W) integers.
            rng: the only source of randomness.

        Returns:
            image and label map of `crop_size`, of the given dtypes, contiguous.

        Raises:
            ValueError: the sizes differ.
        """
        check_same_size(image, label_map)
        config = self.config
        height, width = label_map.shape
        size = resize_short_side(height, width, int(rng.choice(config.short_sides)), config.max_size)
        crop = [min(have, want) for have, want in zip(size, config.crop_size, strict=True)]
        top, left = (int(rng.integers(have - cut + 1)) for have, cut in zip(size, crop, strict=True))
        picture = _resized_crop(image, size, (top, left), crop)
        labels = _resized_label_crop(label_map, size, (top, left), crop)
        picture = self.distort_colors(picture, rng)
        if rng.random() < config.flip_prob:
            picture, labels = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), labels[:, ::-1]
        return self._pad(np.asarray(picture), labels)

    def distort_colors(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Change brightness, then contrast, saturation and hue, each with probability `color_prob`.

        Contrast comes before or after saturation and hue, with equal probability. Values are rounded and clipped to 8
        bits after each step. Saturation and hue are changed in Pillow's 8-bit HSV (hue in steps of 360/256 degrees),
        both in one pass.

        Args:
            image: RGB.
            rng: the only source of randomness.

        Returns:
            RGB image of the same size.
        """
        config = self.config
        levels = np.arange(256.0)
        curve = levels
        if rng.random() < config.color_prob:
            curve = _to_8_bits(curve + rng.uniform(-config.brightness, config.brightness))
        contrast = rng.uniform(*config.contrast) if rng.random() < config.color_prob else 1.0
        contrast_first = rng.random() < 0.5
        if contrast_first:
            curve = _to_8_bits(curve * contrast)
        image = _map_levels(image, [curve] * 3)
        saturation = rng.uniform(*config.saturation) if rng.random() < config.color_prob else 1.0
        turn = rng.uniform(-config.hue_degrees, config.hue_degrees) if rng.random() < config.color_prob else 0.0
        if saturation != 1.0 or turn != 0.0:
            curves = [(levels + round(turn * 256 / 360)) % 256, _to_8_bits(levels * saturation), levels]
            image = _map_levels(image.convert("HSV"), curves).convert("RGB")
        return image if contrast_first else _map_levels(image, [_to_8_bits(levels * contrast)] * 3)

    def _pad(self, image: Array, label_map: Array) -> tuple[Array, Array]:
        height, width = label_map.shape
        if (height, width) == self.config.crop_size:
            return np.array(image), np.ascontiguousarray(label_map)
        padded_image = np.full((*self.config.crop_size, 3), self.config.image_pad, image.dtype)
        padded_labels = np.full(self.config.crop_size, self.config.ignore_label, label_map.dtype)
        padded_image[:height, :width] = image
        padded_labels[:height, :width] = label_map
        return padded_image, padded_labels


def _resized_crop(image: Array, size: tuple[int, int], corner: tuple[int, int], crop: list[int]) -> Image.Image:
    """Return the crop at `corner` of the image resized bilinearly to `size`, without resizing the rest."""
    scale_y, scale_x = image.shape[0] / size[0], image.shape[1] / size[1]
    (top, left), (height, width) = corner, crop
    box = (left * scale_x, top * scale_y, (left + width) * scale_x, (top + height) * scale_y)
    box = (*box[:2], min(box[2], image.shape[1]), min(box[3], image.shape[0]))  # rounding may cross the edge
    return Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, box=box)


def _resized_label_crop(label_map: Array, size: tuple[int, int], corner: tuple[int, int], crop: list[int]) -> Array:
    """Return the same crop of the label map resized to `size`: each pixel takes the value at its centre."""
    rows, columns = (
        ((start + np.arange(length) + 0.5) * (have / want)).astype(np.intp)
        for have, want, start, length in zip(label_map.shape, size, corner, crop, strict=True)
    )
    cut: Array = label_map.take(rows, axis=0).take(columns, axis=1)  # several times as fast as both at once
    return cut


def _map_levels(image: Image.Image, curves: list[Array]) -> Image.Image:
    """Apply a lookup table of 256 values to each of three 8-bit channels."""
    return image.point(np.concatenate(curves).astype(int).tolist())


def _to_8_bits(values: Array) -> Array:
    return np.clip(np.rint(values), 0, 255)
