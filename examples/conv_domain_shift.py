"""Adapt a convolutional network to a domain shift with LoRA: `python examples/conv_domain_shift.py --data DIR`.

A ResNet-20 trained on CIFAR-10 loses ten points of accuracy when the same images are stored as JPEG. Three ways to win them
back with a few thousand JPEG images: LoRA of rank 4 on the 3x3 convolutions of the blocks, full fine-tuning, and training the
last layer. All methods see the same batches; the batch-norm statistics are frozen.

The learning rates were chosen with `--hold-out 2000`, on training images that were left out of training; the reported accuracy
is that after the last epoch. Nothing was chosen on the test images.
"""

import argparse
import os
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import loralib as lora
from loralib.cli import guarded
from loralib.recipes import figures
from loralib.recipes.report import human_bytes

TITLE = "ResNet-20 on CIFAR-10 as JPEG: {}"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SIZES = {"train": 50_000, "test": 10_000}
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
LEARNING_RATES = {"lora": 2e-3, "full": 2e-4, "last-layer": 1e-2}
LORA = lora.LoRAConfig(r=4, lora_alpha=8, target_modules=r"layer\d\.\d\.conv\d")
BATCH = 64
CONSOLE = Console()


# --- the model ------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Two convolutions and a shortcut without parameters, which skips every other pixel and pads channels with zeros."""

    def __init__(self, d: int, k: int):
        super().__init__()
        self.conv1 = nn.Conv2d(d, k, 3, stride=k // d, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(k)
        self.conv2 = nn.Conv2d(k, k, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(k)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, d, h, w) → (n, k, h·d/k, w·d/k)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if y.shape != x.shape:
            pad = (y.shape[1] - x.shape[1]) // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, pad, pad))
        return F.relu(x + y)


class ResNet20(nn.Module):
    """The ResNet of 20 layers for CIFAR-10 (He et al. 2015), option A, with 269,722 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16), Block(16, 16), Block(16, 16))
        self.layer2 = nn.Sequential(Block(16, 32), Block(32, 32), Block(32, 32))
        self.layer3 = nn.Sequential(Block(32, 64), Block(64, 64), Block(64, 64))
        self.linear = nn.Linear(64, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """x (n, 3, 32, 32) → logits (n, 10)."""
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def pretrained(data: Path) -> ResNet20:
    """The network trained on the original images, in eval mode."""
    checkpoint = torch.load(there(data, "resnet_cifar10/resnet20-12fca82f.th"), weights_only=True, map_location="cpu")
    model = ResNet20()
    model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in checkpoint["state_dict"].items()})
    return model.to(memory_format=torch.channels_last).eval()


# --- the images -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Images:
    """pixels (n, 32, 32, 3), uint8; labels (n,)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: slice) -> "Images":
        return Images(self.pixels[i], self.labels[i])


def there(data: Path, name: str) -> Path:
    """A file of the data set. Raises `DataError` if it is missing."""
    if not (path := data / name).is_file():
        raise lora.DataError(f"{path} is missing; name the folder that holds {name} with --data or LORALIB_DATA.")
    return path


def sample(data: Path, part: str, size: int, seed: int = 0) -> Images:
    """`size` images of the part `train` or `test`, drawn by `seed`; the classes take turns. Only these are decoded."""
    each, generator = SIZES[part] // len(CLASSES), torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(each, generator=generator) for _ in CLASSES], dim=1).tolist()
    names = [f"{part}/{c}/{i:04d}.jpg" for turn in order for c, i in zip(CLASSES, turn, strict=True)][:size]
    archive, wanted = there(data, "cifar10_jpg/cifar10_jpg.tar.gz"), set(names)
    try:
        with tarfile.open(archive) as tar:
            found = {m.name: np.asarray(Image.open(tar.extractfile(m)).convert("RGB")) for m in tar if m.name in wanted}
        pixels = np.stack([found[name] for name in names])
    except (tarfile.TarError, EOFError, KeyError) as error:
        raise lora.DataError(f"{archive} is damaged or another archive ({error}); fetch it again.") from None
    return Images(torch.from_numpy(pixels), torch.arange(size) % len(CLASSES))


def augmented(pixels: Tensor) -> Tensor:
    """Each image (n, 32, 32, 3) shifted by up to four pixels (padded with black), and half of them mirrored."""
    n, window = len(pixels), torch.arange(32)
    top, left = torch.randint(9, (2, n, 1))
    columns = torch.where(torch.rand(n, 1) < 0.5, window, window.flip(0)) + left
    rows, of_all = window + top, torch.arange(n)[:, None, None]
    return F.pad(pixels, (0, 0, 4, 4, 4, 4))[of_all, rows[:, :, None], columns[:, None, :]]


def as_input(pixels: Tensor) -> Tensor:
    """The network's input (n, 3, 32, 32) from pixels (n, 32, 32, 3)."""
    return ((pixels / 255 - MEAN) / STD).permute(0, 3, 1, 2)


# --- training and scoring -------------------------------------------------------------------------------------------


@torch.inference_mode()
def predictions(model: nn.Module, images: Images) -> Tensor:
    """The predicted class of each image, (n,)."""
    return torch.cat([model(as_input(batch)).argmax(1) for batch in images.pixels.split(BATCH)])


def accuracy(model: nn.Module, images: Images) -> float:
    """The fraction of the images that the model classifies correctly."""
    return (predictions(model, images) == images.labels).float().mean().item()


def choose_trained(model: ResNet20, method: str) -> None:
    """Make the weights of `method` trainable: LoRA on the convolutions of the blocks, all weights, or the last layer."""
    if method == "lora":
        lora.inject(model, LORA)
        lora.mark_only_lora_as_trainable(model)
    elif method == "last-layer":
        model.requires_grad_(False).linear.requires_grad_(True)


def train(model: nn.Module, images: Images, epochs: int, learning_rate: float) -> Iterator[float]:
    """Train the trainable weights, and yield the mean loss of each epoch. The learning rate rises for the first tenth of the
    steps and then falls to zero. The model stays in eval mode, so batch-norm statistics are frozen."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], learning_rate, weight_decay=0.0)
    steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps + 1, pct_start=0.1, anneal_strategy="linear", cycle_momentum=False
    )
    for epoch in range(1, epochs + 1):
        losses, batches = [], torch.randperm(len(images)).split(BATCH)
        for batch in track(batches, f"epoch {epoch}", console=CONSOLE, transient=True, disable=not CONSOLE.is_terminal):
            loss = F.cross_entropy(model(as_input(augmented(images.pixels[batch]))), images.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        yield sum(losses) / len(losses)


def repair(
    method: str, data: Path, training: Images, test: Images, epochs: int, learning_rate: float, seed: int, folder: Path
) -> dict[str, Any]:
    """Train with one method. Returns its result, with the accuracies before training and after each epoch."""
    model, started = pretrained(data), time.perf_counter()
    total = sum(p.numel() for p in model.parameters())
    torch.manual_seed(seed)
    choose_trained(model, method)
    torch.manual_seed(seed)  # the same batches for all methods
    curve = [accuracy(model, test)]
    CONSOLE.print(f"{method}: before training, accuracy {curve[0]:.4f}", highlight=False)
    for epoch, loss in enumerate(train(model, training, epochs, learning_rate), 1):
        curve.append(accuracy(model, test))
        CONSOLE.print(f"{method}: epoch {epoch}/{epochs}  loss {loss:.4f}  accuracy {curve[-1]:.4f}", highlight=False)
    if method == "lora":
        with lora.merged(model):
            CONSOLE.print(f"{method}: merged into the weights, accuracy {accuracy(model, test):.4f}", highlight=False)
    return {
        "method": method,
        "learning_rate": learning_rate,
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "total": total,
        "curve": curve,
        "seconds": time.perf_counter() - started,
        "saved_bytes": save_trained(model, folder / method),
    }


def save_trained(model: nn.Module, folder: Path) -> int:
    """Save only the trained weights. Returns the size of the files in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(isinstance(module, lora.AdaptedLayer) for module in model.modules()):
        lora.save(lora.extract(model), folder)
    else:
        torch.save({name: p.detach() for name, p in model.named_parameters() if p.requires_grad}, folder / "trained.pt")
    return sum(file.stat().st_size for file in folder.iterdir())


# --- what a person sees ---------------------------------------------------------------------------------------------


def table(results: Sequence[dict[str, Any]], title: str) -> Table:
    """A table with a row for each method."""
    made = Table("method", title=title)
    for heading in ("trained", "of the model", "before", "after", "time", "on disk"):
        made.add_column(heading, justify="right", no_wrap=True)
    for run in results:
        share, seconds, size = 100 * run["trained"] / run["total"], f"{run['seconds']:.0f} s", human_bytes(run["saved_bytes"])
        scores = [f"{100 * run['curve'][i]:.2f} %" for i in (0, -1)]
        made.add_row(run["method"], f"{run['trained']:,}", f"{share:.2f} %", *scores, seconds, size)
    return made


def draw(path: Path, results: Sequence[dict[str, Any]], title: str) -> None:
    """Plot the accuracies over the epochs as a PNG, with the accuracy before training as a horizontal line."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    start = 100 * results[0]["curve"][0]
    axes.axhline(start, color="gray", linestyle="--", label=f"before: {start:.1f} %")
    for run, marker, colour in zip(results, "os^", (figures.BLUE, figures.GREEN, figures.ORANGE), strict=False):
        percent = [100 * value for value in run["curve"]]
        axes.plot(
            percent, marker=marker, color=colour, label=f"{run['method']}: {run['trained']:,} trained, {percent[-1]:.1f} %"
        )
    axes.set(title=title, xlabel="epoch", ylabel="accuracy in %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    figures.write(figure, path)


def compare(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Train with each method, print the table and draw the curves. Returns the results."""
    training = sample(given.data, "train", given.images, given.seed)
    if n := given.hold_out:
        training, test, where = training[:-n], training[-n:], f"{n:,} training images held out"
    else:
        test, where = sample(given.data, "test", SIZES["test"]), f"{SIZES['test']:,} test images"
    results = [
        repair(m, given.data, training, test, given.epochs, given.learning_rate or LEARNING_RATES[m], given.seed, given.output)
        for m in given.method
    ]
    CONSOLE.print(table(results, f"{len(training):,} JPEG images, {given.epochs} epochs; {where}"))
    draw(given.output / "curve.png", results, TITLE.format(where))
    CONSOLE.print(f"What was trained and curve.png are in {given.output}/.", highlight=False)
    return results


def options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s --data DIR [options]",
        description="Adapt a ResNet-20 to JPEG images with LoRA on its convolutions, full fine-tuning, or its last layer.",
    )
    folders = os.environ.get("LORALIB_DATA")
    parser.add_argument(
        "--data",
        type=Path,
        default=folders,
        metavar="DIR",
        help="folder with cifar10_jpg and resnet_cifar10 (default: the variable LORALIB_DATA)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/conv_domain_shift"),
        metavar="DIR",
        help="folder to write (default: %(default)s)",
    )
    methods = list(LEARNING_RATES)
    parser.add_argument("--method", nargs="+", choices=methods, default=methods, help="methods to compare (default: all)")
    parser.add_argument(
        "--images", type=int, default=10_000, metavar="N", help="number of training images (default: %(default)s)"
    )
    parser.add_argument(
        "--hold-out", type=int, default=0, metavar="N", help="score on N of them instead of the test images (default: 0)"
    )
    parser.add_argument(
        "--epochs", type=int, default=8, metavar="N", help="passes over the training images (default: %(default)s)"
    )
    parser.add_argument("--learning-rate", type=float, metavar="RATE", help="peak learning rate (default: the method's)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="random seed of images, batches and factors (default: %(default)s)"
    )
    given = parser.parse_args(argv)
    if given.data is None:
        parser.error("name the folder that holds cifar10_jpg and resnet_cifar10 with --data or LORALIB_DATA")
    if not 0 <= given.hold_out < given.images <= SIZES["train"] or given.epochs < 1:
        parser.error(f"needs 0 <= --hold-out < --images <= {SIZES['train']} and --epochs of at least 1")
    return given


def main() -> int:
    """Run the comparison with the options of the command line."""
    compare(options())
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
