"""Synthetic medical images with measured privacy and utility. Submodules import late: `import medsynth` is cheap."""

__version__ = "0.1.0"
