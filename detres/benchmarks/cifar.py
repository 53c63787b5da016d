"""Training steps of a CIFAR network, images in to weights updated, against a plain loop over
torchvision's transforms.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

from backbones import create_backbone
from detres.benchmarks.timing import Timing
from detres.class_map import ClassMap
from detres.classification.data.in_memory import ArrayTrainBatches
from detres.classification.model import ClassificationModel
from detres.engine.distributed import Group
from detres.engine.flight_recorder import FlightRecorder
from detres.engine.log import RunLog
from detres.engine.loop import LoopSettings, fit
from detres.engine.meter import Meter
from detres.engine.optimizers import sgd
from detres.engine.probes import native_precision
from detres.engine.progress import Progress
from detres.engine.schedule import Schedule
from detres.images.source import ImageArrays

STEPS, BATCH_SIZE, IMAGES = 30, 128, 20_000


class UnkeptRun:
    """A run of which nothing is kept, but for its log in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.progress, self.meter = Progress(), Meter()
        self.average, self.recorder = None, FlightRecorder()
        self.scaler = torch.amp.GradScaler(enabled=False)
        self.log = RunLog(
            folder / "records.jsonl",
            folder / "tensorboard",
            console=io.StringIO(),
            steps=STEPS,
            progress=self.progress,
        )

    def saw(self, parts: list) -> None:
        """Nothing is remembered."""

    def evaluate(self) -> None:
        """Nothing is measured."""
        self.progress.see_metric(None)

    def save(self) -> None:
        """Nothing is saved."""


def benchmark_cifar(timing: Timing) -> None:
    """Time steps of ResNet-20: `fit` on images in memory, in the faster precision, against a plain
    loop in float32 over torchvision's transforms in two loader workers.
    """
    device, images = timing.device, random_images()
    settings = LoopSettings(
        seed=0, log_every=STEPS, save_every=STEPS, precision=native_precision(device)[0]
    )
    model = ClassificationModel(net=create_backbone("resnet20", num_classes=10))
    model = model.to(device, memory_format=torch.channels_last)
    decay = 1e-4
    optimizer = sgd(
        model, momentum=0.9, weight_decay=decay, norm_weight_decay=decay, bias_lr_scale=1.0
    )
    net = create_backbone("resnet20", num_classes=10).to(device)
    plain = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=decay)
    loader = plain_loader(images, pin_memory=device.type == "cuda")

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            run = UnkeptRun(Path(folder))
            batches = ArrayTrainBatches(
                images, batch_size=BATCH_SIZE, seed=0, steps=STEPS, device=device
            )
            schedule = Schedule(lr=0.1, steps=STEPS)
            fit(
                model,
                optimizer,
                batches,
                schedule=schedule,
                settings=settings,
                run=run,
                device=device,
                group=Group(),
            )
            run.log.close()

    def theirs() -> None:
        net.train()
        for pixels, labels in loader:
            plain.zero_grad()
            nn.functional.cross_entropy(net(pixels.to(device)), labels.to(device)).backward()
            plain.step()

    job = f"{STEPS} training steps, ResNet-20, batch {BATCH_SIZE}, {settings.precision}"
    timing.row(job, ours, theirs)
    model.compile_training()
    timing.row("  the same, compiled", ours, theirs)


def random_images() -> ImageArrays:
    """Return images of CIFAR-10's size and number of classes."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (IMAGES, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, IMAGES)
    return ImageArrays("random", ClassMap.of_names("0123456789"), pixels, labels)


def plain_loader(images: ImageArrays, *, pin_memory: bool) -> DataLoader:
    """Return a loader over torchvision's usual transforms, in two workers."""
    then = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.49, 0.48, 0.45), (0.2, 0.2, 0.2)),
        ]
    )
    dataset = PillowImages(images, then)
    return DataLoader(
        dataset,
        BATCH_SIZE,
        sampler=RandomSampler(dataset, num_samples=STEPS * BATCH_SIZE),
        num_workers=2,
        persistent_workers=True,
        pin_memory=pin_memory,
    )


class PillowImages(Dataset):
    """Images in memory as torchvision's own CIFAR-10 gives them: through Pillow, one by one."""

    def __init__(self, images: ImageArrays, transform: Callable[[Image.Image], Tensor]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.images.pixels[index])
        return self.transform(image), int(self.images.labels[index])
