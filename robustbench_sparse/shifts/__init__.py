"""All shifts, images as they may come without any adversary: one import and one entry each."""

from robustbench_sparse.shifts.base import Shift as Shift
from robustbench_sparse.shifts.blur import DefocusBlur, GaussianBlur
from robustbench_sparse.shifts.coarse import JPEG, Pixelate
from robustbench_sparse.shifts.light import Brightness, Contrast
from robustbench_sparse.shifts.noise import GaussianNoise, ImpulseNoise, ShotNoise
from robustbench_sparse.shifts.resolution import Resolution

SHIFTS: dict[str, type[Shift]] = {
    "resolution": Resolution,
    "gaussian_noise": GaussianNoise,
    "shot_noise": ShotNoise,
    "impulse_noise": ImpulseNoise,
    "gaussian_blur": GaussianBlur,
    "defocus_blur": DefocusBlur,
    "contrast": Contrast,
    "brightness": Brightness,
    "jpeg": JPEG,
    "pixelate": Pixelate,
}
