"""Packaging of detres and backbones; `pip install -e .[dev]` for development."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
PACKAGE = (ROOT / "detres" / "__init__.py").read_text(encoding="utf-8")


class BuildWithConfigs(build_py):
    """Puts configs/, which stay at the top level of the repository, into the wheel as package data
    of detres; an editable installation finds them where they are.
    """

    def run(self) -> None:
        """Build the packages, then copy the configurations."""
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib) / "detres" / "configs"
            self.mkpath(str(folder))
            for path in sorted((ROOT / "configs").glob("*.yaml")):
                self.copy_file(str(path), str(folder / path.name))


setup(
    name="detres",
    version=re.search(r'^__version__ = "(.+)"$', PACKAGE, re.MULTILINE)[1],
    description="Faster R-CNN on ResNet backbones: train, evaluate and predict on COCO, PASCAL "
    "VOC and your own data",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["backbones", "detres", "detres.*"]),
    package_data={"backbones": ["py.typed"], "detres": ["py.typed", "__init__.pyi"]},
    cmdclass={"build_py": BuildWithConfigs},
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
        "msgspec>=0.20",
        "defusedxml>=0.7.1",
        "fsspec>=2023.5",
        "tqdm>=4.66",
        "matplotlib>=3.8",
    ],
    extras_require={
        "tensorboard": ["tensorboard>=2.16"],
        "fast": ["hotcoco>=1.3,<2"],
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "ruff>=0.8",
            "tensorboard>=2.16",
            "hotcoco>=1.3,<2",
        ],
    },
    entry_points={"console_scripts": ["detres = detres.cli:main"]},
)
