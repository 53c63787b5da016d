"""Time a detector, a backbone, or the input and training of a classifier against torchvision's:
`python tools/benchmark.py WHAT`.

Both do the same job in the same process, in turns.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import ops, transforms

from backbones import create_backbone, fold_batch_norm
from detres.boxes import nms
from detres.build import build_detector
from detres.config import ModelConfig, check
from detres.data.array_batches import ArrayTrainBatches
from detres.data.crops import CropDataset, TrainCrop
from detres.data.images import read_image_folder
from detres.data.shapes import draw_shapes_image
from detres.engine.log import RunLog
from detres.engine.precision import faster_precision
from detres.engine.progress import Progress
from detres.engine.schedule import Schedule
from detres.engine.train import fit, sgd
from detres.image_io import pad_images, resize_image, resized_size
from detres.models.classifier import Classifier
from detres.models.roi_pool import roi_align
from detres.structures import ClassMap, ImageArrays, ImageBatch, Target
from detres.tools.command_line import add_device_flag, run
from detres.tools.torchvision_parts import TorchvisionParts

NUM_CLASSES = 80
FLIP_AND_NORMALIZE = (
    transforms.RandomHorizontalFlip(),
    transforms.ToTensor(),
    transforms.Normalize((0.49, 0.48, 0.45), (0.2, 0.2, 0.2)),
)


def main(argv: list[str] | None = None) -> int:
    """Parse and time; returns the exit status."""
    parser = argparse.ArgumentParser(description="time parts of this toolkit against torchvision's")
    parser.add_argument(
        "what", nargs="?", default="detector", choices=tuple(JOBS), help="default: %(default)s"
    )
    parser.add_argument(
        "--backbone", default="resnet50", choices=("resnet18", "resnet34", "resnet50", "resnet101")
    )
    parser.add_argument(
        "--shorter",
        type=int,
        default=600,
        help="detector: px of the image's shorter side (default: %(default)s)",
    )
    parser.add_argument(
        "--rois", type=int, default=300, help="detector: proposals an image (default: %(default)s)"
    )
    parser.add_argument(
        "--batch", type=int, default=8, help="backbone: images of 224 px (default: %(default)s)"
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="crops: JPEG files, a folder a class (default: drawn ones of 500x375 px)",
    )
    parser.add_argument(
        "--repeats",
        type=at_least_one,
        default=5,
        help="timed runs of each; the median counts (default: %(default)s)",
    )
    add_device_flag(parser)
    arguments = parser.parse_args(argv)
    return run(lambda: benchmark(arguments))


def at_least_one(text: str) -> int:
    """Return a number of repeats; raises argparse.ArgumentTypeError below 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of repeats, expected 1 or more")
    return int(text)


def benchmark(arguments: argparse.Namespace) -> None:
    """Print one row a job: seconds of both, and how many times faster ours is."""
    torch.manual_seed(0)
    sys.stdout.write(
        f"torch {torch.__version__}, {arguments.device}, {torch.get_num_threads()} threads; "
        f"medians of {arguments.repeats}, ours and theirs in turns\n"
    )
    JOBS[arguments.what](arguments)


def benchmark_backbone(arguments: argparse.Namespace) -> None:
    """Time a network as it is built, then folded, in channels last and in bfloat16, each against
    torchvision's as it is built.
    """
    device, repeats = arguments.device, arguments.repeats
    ours = create_backbone(arguments.backbone)
    theirs = torchvision.models.get_model(arguments.backbone)
    theirs.load_state_dict(ours.state_dict())
    ours, theirs = ours.to(device), theirs.to(device)
    images = torch.randn((arguments.batch, 3, 224, 224), device=device)
    labels = torch.zeros(arguments.batch, dtype=torch.long, device=device)

    def step(net: nn.Module) -> None:
        nn.functional.cross_entropy(net(images), labels).backward()
        net.zero_grad(set_to_none=True)

    def infer(net: nn.Module, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return net(x)

    job = f"{arguments.backbone}, {arguments.batch} x 224 px"
    row(f"forward + backward, {job}", lambda: step(ours), lambda: step(theirs), device, repeats)
    ours.eval()
    theirs.eval()
    folded = fold_batch_norm(ours).to(memory_format=torch.channels_last)
    last = images.contiguous(memory_format=torch.channels_last)
    error = (infer(folded, last) - infer(theirs, images)).abs().max() / infer(
        theirs, images
    ).abs().max()
    row(
        f"forward, {job}",
        lambda: infer(ours, images),
        lambda: infer(theirs, images),
        device,
        repeats,
    )
    row(
        "  folded, channels last",
        lambda: infer(folded, last),
        lambda: infer(theirs, images),
        device,
        repeats,
    )
    compiled = torch.compile(folded)
    row(
        "  the same, compiled",
        lambda: infer(compiled, last),
        lambda: infer(theirs, images),
        device,
        repeats,
    )
    calls = convolutions_of(folded, last)
    row(
        "  its convolutions alone, the floor",
        lambda: run_calls(calls),
        lambda: infer(theirs, images),
        device,
        repeats,
    )
    half, half_images = (
        fold_batch_norm(ours).to(memory_format=torch.channels_last).bfloat16(),
        last.bfloat16(),
    )
    row(
        "  folded, channels last, bfloat16",
        lambda: infer(half, half_images),
        lambda: infer(theirs, images),
        device,
        repeats,
    )
    sys.stdout.write(f"largest difference of the folded logits: {error:.1e} of the largest logit\n")


def convolutions_of(net: nn.Module, images: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """Return every convolution of a network with the input it gets for `images`."""
    calls = []
    hooks = [
        module.register_forward_hook(
            lambda module, inputs, _: calls.append((module, inputs[0].clone()))
        )
        for module in net.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.inference_mode():
        net(images)
    for hook in hooks:
        hook.remove()
    return calls


def run_calls(calls: list[tuple[nn.Module, Tensor]]) -> None:
    """Run modules on their inputs."""
    with torch.inference_mode():
        for module, x in calls:
            module(x)


def benchmark_detector(arguments: argparse.Namespace) -> None:
    """Time the detector and its parts against one made of torchvision's."""
    device = arguments.device
    config = model_config(arguments)
    ours = build_detector(config, NUM_CLASSES)
    settle(ours)
    theirs = TorchvisionParts(config, NUM_CLASSES)
    theirs.copy_weights(ours)
    ours, theirs = ours.to(device).eval(), theirs.to(device).eval()
    images, targets = shapes_batch(config)
    images, targets = images.to(device), [target.to(device) for target in targets]
    repeats = arguments.repeats

    def inference(model: nn.Module) -> None:
        with torch.inference_mode():
            model(images)

    def step(model: nn.Module) -> None:
        model(images, targets).total().backward()
        model.zero_grad(set_to_none=True)

    job = (
        f"{arguments.backbone}-C4, {images.sizes[0][0]}x{images.sizes[0][1]} px, "
        f"{arguments.rois} RoIs"
    )
    row(f"inference, {job}", lambda: inference(ours), lambda: inference(theirs), device, repeats)
    ours.train()
    theirs.train()
    row(f"forward + backward, {job}", lambda: step(ours), lambda: step(theirs), device, repeats)

    feature = torch.randn((1, ours.backbone.channels["conv4"], 38, 57), device=device).to(
        memory_format=torch.channels_last
    )
    rois = random_rois(arguments.rois, device)
    scale, size = 1 / 16, config.roi.pool_size
    row(
        f"RoIAlign {size}x{size}, forward + backward",
        lambda: pool_ours(feature, rois, size, scale),
        lambda: pool_theirs(feature, rois, size, scale),
        device,
        repeats,
    )
    boxes = random_rois(6000, device)[:, 1:]
    scores = torch.rand(len(boxes), device=device)
    row(
        f"NMS, 6000 boxes, best {arguments.rois}",
        lambda: nms(boxes, scores, 0.7, arguments.rois),
        lambda: ops.nms(boxes, scores, 0.7)[: arguments.rois],
        device,
        repeats,
    )


def benchmark_cifar(arguments: argparse.Namespace) -> None:
    """Time training steps of ResNet-20 at batch 128, images in to weights updated: `fit` on images
    in memory, in the faster precision, against a plain loop in float32 over torchvision's
    transforms in two loader workers.
    """
    device, steps, batch_size = arguments.device, 30, 128
    rng = np.random.default_rng(0)
    class_map = ClassMap(tuple("0123456789"), tuple(range(10)))
    pixels, labels = (
        rng.integers(0, 256, (20_000, 32, 32, 3), np.uint8),
        rng.integers(0, 10, 20_000),
    )
    images = ImageArrays("random", class_map, pixels, labels)
    precision = faster_precision(device)
    model = Classifier(net=create_backbone("resnet20", num_classes=10)).to(
        device, memory_format=torch.channels_last
    )
    optimizer = sgd(
        model, momentum=0.9, weight_decay=1e-4, norm_weight_decay=1e-4, bias_lr_scale=1.0
    )
    net = create_backbone("resnet20", num_classes=10).to(device)
    plain = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    dataset = PillowImages(
        images, transforms.Compose([transforms.RandomCrop(32, padding=4), *FLIP_AND_NORMALIZE])
    )
    sampler = RandomSampler(dataset, num_samples=steps * batch_size)
    loader = DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=2,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            log = RunLog(Path(folder), console=io.StringIO(), steps=steps)
            fit(
                model=model,
                optimizer=optimizer,
                batches=ArrayTrainBatches(
                    images, batch_size=batch_size, seed=0, steps=steps, device=device
                ),
                progress=Progress(),
                schedule=Schedule(lr=0.1, steps=steps),
                evaluate=lambda: {"top1": None},
                best_metric="top1",
                save_last=lambda progress: None,  # noqa: ARG005
                save_best=lambda progress: None,  # noqa: ARG005
                log=log,
                device=device,
                seed=0,
                log_every=steps,
                eval_every=0,
                save_every=steps,
                precision=precision,
            )
            log.close()

    def theirs() -> None:
        net.train()
        for pixels, labels in loader:
            plain.zero_grad()
            nn.functional.cross_entropy(net(pixels.to(device)), labels.to(device)).backward()
            plain.step()

    row(
        f"{steps} training steps, ResNet-20, batch {batch_size}, {precision}",
        ours,
        theirs,
        device,
        arguments.repeats,
    )
    model.compile_training()
    row("  the same, compiled", ours, theirs, device, arguments.repeats)


def benchmark_crops(arguments: argparse.Namespace) -> None:
    """Time reading JPEG files into random 224 px crops, on one core: decoding, scaling, cropping,
    mirroring; ours shifts colours too.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(arguments.images) if arguments.images else drawn_photographs(Path(folder))
        files = read_image_folder(root)
        dataset = CropDataset(files, TrainCrop(shorter=(256, 480), crop=224, flip=0.5, pca=0.1))
        chosen = np.random.default_rng(0).permutation(len(files))[:200].tolist()
        then = transforms.Compose(
            [
                transforms.RandomCrop(224),
                transforms.RandomHorizontalFlip(),
                transforms.PILToTensor(),
            ]
        )

        def ours() -> None:
            for index in chosen:
                dataset[index, index]

        def theirs() -> None:
            for index in chosen:
                image = Image.open(files.name(index)).convert("RGB")
                then(transforms.functional.resize(image, int(torch.randint(256, 481, ()))))

        threads = torch.get_num_threads()
        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        row(
            f"{len(chosen)} JPEG files to 224 px crops, one core",
            ours,
            theirs,
            torch.device("cpu"),
            arguments.repeats,
        )
        torch.set_num_threads(threads)


class PillowImages(Dataset):
    """Images in memory as torchvision's own CIFAR-10 gives them: through Pillow, one by one."""

    def __init__(self, images: ImageArrays, transform: Callable[[Image.Image], Tensor]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images.pixels[index])), int(
            self.images.labels[index]
        )


def drawn_photographs(folder: Path) -> Path:
    """Write 200 drawn images of 500x375 px as JPEG files of one class, and return the folder."""
    (folder / "drawn").mkdir()
    for number in range(200):
        pixels = resize_image(draw_shapes_image(0, "val", number)[0], (375, 500))
        Image.fromarray(pixels).save(folder / "drawn" / f"{number:03d}.jpg", quality=90)
    return folder


JOBS = {
    "detector": benchmark_detector,
    "backbone": benchmark_backbone,
    "cifar": benchmark_cifar,
    "crops": benchmark_crops,
}


def row(
    job: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    device: torch.device,
    repeats: int,
) -> None:
    """Run both in turns, after one run each that is not counted, and print their median times."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for call, found in zip((ours, theirs), times, strict=True):
            started = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if repeat:
                found.append(time.perf_counter() - started)
    mine, other = map(statistics.median, times)
    sys.stdout.write(
        f"{job:<58}  ours {mine:8.4f} s  torchvision {other:8.4f} s  {other / mine:6.2f} times "
        "faster\n"
    )
    sys.stdout.flush()


def model_config(arguments: argparse.Namespace) -> ModelConfig:
    """Return the C4 model that torchvision's parts can express too."""
    tree = {
        "backbone": {
            "name": arguments.backbone,
            "stride_placement": "torchvision",
            "norm": "batch",
            "freeze_at": 0,
        },
        "input": {"shorter": arguments.shorter, "longer": arguments.shorter * 5 // 3},
        "anchors": {"style": "torchvision", "sizes": [64, 128, 256, 512]},
        "rpn": {
            "width": 1024 if arguments.backbone in ("resnet50", "resnet101") else 256,
            "objectness": "sigmoid",
            "train_anchors": "all",
            "min_size": 0.001,
            "test_post_nms_top_n": arguments.rois,
        },
        "roi": {"pool": "roi_align", "smooth_l1_beta": 1 / 9},
    }
    return check(ModelConfig, tree, "benchmark")


def settle(detector: nn.Module) -> None:
    """Scale the random weights so that activations and scores are of a trained network's size."""
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.5)
    nn.init.normal_(detector.rpn.head.objectness.weight, std=0.05)


def shapes_batch(config: ModelConfig) -> tuple[ImageBatch, list[Target]]:
    """Return one drawn image at the model's input size, and its objects."""
    pixels, objects = draw_shapes_image(0, "val", 0)
    size = resized_size(*pixels.shape[:2], shorter=config.input.shorter, longer=config.input.longer)
    scale = size[0] / pixels.shape[0]
    boxes = [[float(edge) * scale for edge in box_of(item.mask)] for item in objects]
    flags = torch.zeros(len(boxes), dtype=torch.bool)
    labels = torch.tensor([item.label for item in objects])
    target = Target(1, torch.tensor(boxes).view(-1, 4), labels, flags, flags)
    return pad_images([resize_image(pixels, size)], original_sizes=[pixels.shape[:2]], ids=[1]), [
        target
    ]


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the xyxy box around a mask's pixels."""
    ys, xs = mask.nonzero()
    return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


def random_rois(num: int, device: torch.device) -> Tensor:
    """Return (num, 5) RoIs of image 0 within 600 x 900 px."""
    corners = torch.rand((num, 2)) * torch.tensor([700.0, 400.0])
    sides = 30 + torch.rand((num, 2)) * 170
    return torch.cat((torch.zeros((num, 1)), corners, corners + sides), dim=1).to(device)


def pool_ours(feature: Tensor, rois: Tensor, size: int, scale: float) -> None:
    """RoIAlign as a gather-sum, and its gradient."""
    leaf = feature.detach().requires_grad_()
    roi_align(
        leaf, rois, output_size=size, spatial_scale=scale, sampling_ratio=2, aligned=False
    ).sum().backward()


def pool_theirs(feature: Tensor, rois: Tensor, size: int, scale: float) -> None:
    """torchvision's operator, and its gradient."""
    leaf = feature.detach().requires_grad_()
    ops.roi_align(leaf, rois, size, scale, 2).sum().backward()


if __name__ == "__main__":
    sys.exit(main())
