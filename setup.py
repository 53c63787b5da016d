"""Packaging of detres and backbones; `pip install -e .[dev]` for development."""

from pathlib import Path

from setuptools import setup

setup(
    name="detres",
    version="0.1.0",
    description="Faster R-CNN on ResNet backbones: train, evaluate and predict on COCO, PASCAL "
    "VOC and your own data",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    # tools/ and configs/ stay at the top level of the repository; installed, they live inside
    # detres so that the `detres` command finds them.
    packages=[
        "backbones",
        "detres",
        "detres.data",
        "detres.engine",
        "detres.evaluation",
        "detres.models",
        "detres.tools",
        "detres.configs",
    ],
    package_dir={"detres.tools": "tools", "detres.configs": "configs"},
    package_data={"detres.configs": ["*.yaml"]},
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "numpy>=1.26",
        "pycocotools>=2.0.8",
        "albumentations==2.0.8",
        "opencv-python-headless>=4.11",
        "pillow>=10.2",
        "pyyaml>=6.0",
        "pydantic>=2.7",
        "safetensors>=0.4.5",
        "defusedxml>=0.7.1",
        "fsspec>=2023.5",
        "tqdm>=4.66",
        "matplotlib>=3.8",
        "tensorboard>=2.16",
    ],
    extras_require={"dev": ["pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.100", "ruff>=0.8"]},
    entry_points={"console_scripts": ["detres = detres.tools:main"]},
)
