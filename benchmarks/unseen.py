"""Writes networks that played no part in the development as ONNX files with random weights.

    python -m fastrun.benchmarks.unseen FOLDER [NAME ...]

PyTorch makes them. The names are those of `NETWORKS` (other kinds than classifiers: decoders, super
resolution, detection) or of models of timm, if that is installed. The default is all of `NETWORKS`.
`fastrun bench FOLDER/*.onnx` times them.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastrun.tuner.terminal.exits import ended, leave

Make = Callable[[], nn.Module]


def block(
    c: int, oc: int, size: int = 3, stride: int = 1, dilation: int = 1, groups: int = 1,
    activation: Make = nn.ReLU,
) -> nn.Sequential:  # fmt: skip
    """Convolution, normalisation, activation."""
    pad = dilation * (size // 2)
    conv = nn.Conv2d(c, oc, size, stride, pad, dilation, groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(oc), activation())


class UNet(nn.Module):
    """Four levels of two 3x3 convolutions; up by transposed convolutions (Ronneberger, 2015)."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (3, 32, 64, 128, 256)
        pairs = [*pairwise(sizes)]
        self.down = nn.ModuleList(nn.Sequential(block(c, oc), block(oc, oc)) for c, oc in pairs)
        ups = pairs[:0:-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(oc, c, 2, 2) for c, oc in ups)
        self.join = nn.ModuleList(nn.Sequential(block(2 * c, c), block(c, c)) for c, _ in ups)
        self.out = nn.Conv2d(32, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels: list[Tensor] = []
        for down in self.down:
            x = down(functional.max_pool2d(x, 2) if levels else x)
            levels.append(x)
        for up, join, level in zip(self.up, self.join, levels[-2::-1], strict=True):
            x = join(torch.cat([level, up(x)], 1))
        return self.out(x)


class SRResNet(nn.Module):
    """Residual blocks at low resolution, then pixel shuffle; 9x9 at both ends (Ledig, 2017)."""

    def __init__(self, blocks: int = 5) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(3, 64, 9, 1, 4), nn.PReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(block(64, 64, activation=nn.PReLU), block(64, 64, activation=nn.Identity))
            for _ in range(blocks)
        )
        self.middle = block(64, 64, activation=nn.Identity)
        up = nn.Conv2d(64, 256, 3, 1, 1), nn.PixelShuffle(2), nn.PReLU()
        self.tail = nn.Sequential(*up, nn.Conv2d(64, 3, 9, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.head(x)
        for one in self.blocks:
            x = x + one(x)
        return self.tail(first + self.middle(x))


class StyleTransfer(nn.Module):
    """Reflected borders, instance normalisation, nearest enlargement (Johnson, 2016)."""

    def __init__(self) -> None:
        super().__init__()

        def conv(c: int, oc: int, size: int, stride: int = 1) -> nn.Sequential:
            inside = nn.Conv2d(c, oc, size, stride), nn.InstanceNorm2d(oc, affine=True)
            return nn.Sequential(nn.ReflectionPad2d(size // 2), *inside)

        self.down = nn.ModuleList([conv(3, 32, 9), conv(32, 64, 3, 2), conv(64, 128, 3, 2)])
        pairs = [(conv(128, 128, 3), nn.ReLU(), conv(128, 128, 3)) for _ in range(5)]
        self.blocks = nn.ModuleList(nn.Sequential(*pair) for pair in pairs)
        self.up = nn.ModuleList([conv(128, 64, 3), conv(64, 32, 3)])
        self.out = nn.Sequential(nn.ReflectionPad2d(4), nn.Conv2d(32, 3, 9))

    def forward(self, x: Tensor) -> Tensor:
        for down in self.down:
            x = down(x).relu()
        for one in self.blocks:
            x = x + one(x)
        for up in self.up:
            x = up(functional.interpolate(x, scale_factor=2.0, mode="nearest")).relu()
        return self.out(x)


class TinyDetector(nn.Module):
    """YOLOv3-tiny: pools between convolutions, two maps of boxes (Redmon and Farhadi, 2018)."""

    def __init__(self) -> None:
        super().__init__()

        def leaky(c: int, oc: int, size: int = 3) -> nn.Sequential:
            return block(c, oc, size, activation=lambda: nn.LeakyReLU(0.1))

        sizes = (3, 16, 32, 64, 128, 256)
        self.body = nn.ModuleList(leaky(c, o) for c, o in pairwise(sizes))
        self.deep = nn.ModuleList([leaky(256, 512), leaky(512, 1024), leaky(1024, 256, 1)])
        self.coarse = nn.Sequential(leaky(256, 512), nn.Conv2d(512, 255, 1))
        self.up = leaky(256, 128, 1)
        self.fine = nn.Sequential(leaky(384, 256), nn.Conv2d(256, 255, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for one in self.body:
            level = one(x)
            x = functional.max_pool2d(level, 2)
        first, second, last = self.deep
        x = functional.max_pool2d(functional.pad(first(x), (0, 1, 0, 1)), 2, 1)
        x = last(second(x))
        up = functional.interpolate(self.up(x), scale_factor=2.0)
        return self.coarse(x), self.fine(torch.cat([up, level], 1))


class DeepLab(nn.Module):
    """A separable body and dilations of 6, 12 and 18 side by side (Chen, 2017)."""

    def __init__(self) -> None:
        super().__init__()
        body: list[nn.Module] = [block(3, 32, 3, 2)]
        for c, oc, stride in (
            (32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 1),
        ):  # fmt: skip
            body += [block(c, c, 3, stride, groups=c), block(c, oc, 1)]
        self.body = nn.Sequential(*body)
        wide = [block(512, 256, 3, dilation=d) for d in (6, 12, 18)]
        self.views = nn.ModuleList([block(512, 256, 1), *wide])
        self.whole = block(512, 256, 1)
        self.out = nn.Sequential(block(1280, 256, 1), nn.Conv2d(256, 21, 1))

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        x = self.body(x)
        mean = self.whole(functional.adaptive_avg_pool2d(x, 1))
        mean = functional.interpolate(mean, size=x.shape[-2:], mode="nearest")
        x = self.out(torch.cat([*(view(x) for view in self.views), mean], 1))
        return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


def espcn() -> nn.Module:
    """Super resolution with all work at low resolution (Shi, 2016)."""
    first = nn.Conv2d(1, 64, 5, 1, 2), nn.Tanh(), nn.Conv2d(64, 32, 3, 1, 1), nn.Tanh()
    return nn.Sequential(*first, nn.Conv2d(32, 9, 3, 1, 1), nn.PixelShuffle(3))


NETWORKS: dict[str, tuple[Make, tuple[int, ...]]] = {
    "unet": (UNet, (1, 3, 192, 192)),
    "srresnet": (SRResNet, (1, 3, 96, 96)),
    "espcn": (espcn, (1, 1, 160, 240)),
    "style": (StyleTransfer, (1, 3, 224, 224)),
    "yolov3_tiny": (TinyDetector, (1, 3, 416, 416)),
    "deeplab": (DeepLab, (1, 3, 321, 321)),
}
"""The class or function of each network, and the shape of its input."""


def export(name: str, file: Path) -> None:
    """Write a network of `NETWORKS`, or of timm, with random weights.

    Raises:
        ModuleNotFoundError: it is not in `NETWORKS`, and timm is not installed.
    """
    torch.manual_seed(0)
    if name in NETWORKS:
        make, shape = NETWORKS[name]
        network = make()
    else:
        import timm

        network = timm.create_model(name, exportable=True)
        shape = (1, *network.default_cfg["input_size"])
    for part in network.modules():
        # As after training: a new normalisation would be the identity.
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, 0, 0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    example = (torch.randn(*shape),)
    torch.onnx.export(network.eval(), example, str(file), dynamo=False, opset_version=17)


def main(words: Sequence[str] | None = None) -> int:
    """Export the named networks and print their files."""
    parser = ArgumentParser(
        prog="python -m fastrun.benchmarks.unseen", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=[*NETWORKS], metavar="NAME")
    arguments = parser.parse_args(words)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.names:
        file = arguments.folder / f"{name}.onnx"
        export(name, file)
        print(file)
    return 0


if __name__ == "__main__":
    leave(ended("unseen", main))
