"""DearKD (CVPR 2022), reproduced. Import `dearkd.models` to register the students in timm."""

__version__ = "0.1.0"
