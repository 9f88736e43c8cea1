"""How many images a second does the same generator learn from in PyTorch?

``gan.py --peer`` runs this in an environment of its own, which has PyTorch and no cvdask:
``python gan_torch_peer.py TASK``, where the task is JSON. The networks have the layers and channels
of cvdask's default preset (StyleGAN2 as Karras et al. 2020 describe it, with convolutions at the
coarser resolution), the losses the same terms as often: non-saturating, lazy R1, path length,
shares. They are written as is usual in PyTorch: modules, autograd, fused Adam, memory with channels
last where that is faster. There is no augmentation, which cvdask's steps have, and batches are in
memory. What is printed last is the number of images per second.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SLOPE, GAIN, GROUP = 0.2, math.sqrt(2), 4
N_CODE_LAYERS = 2


class Dense(nn.Module):
    def __init__(self, n_in: int, n_out: int, start: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in))
        self.bias = nn.Parameter(torch.full((n_out,), start))
        self.scale = 1 / math.sqrt(n_in)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight * self.scale, self.bias)


class Convolution(nn.Module):
    def __init__(self, extent: int, n_in: int, n_out: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in, extent, extent))
        self.bias = nn.Parameter(torch.zeros(n_out)) if bias else None
        self.scale = 1 / math.sqrt(n_in * extent**2)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        bias = None if self.bias is None else self.bias * gain
        weight = self.weight * (self.scale * gain)
        return functional.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


def rectify(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, SLOPE)


def blur(x: Tensor, line: tuple[int, ...], **how: Any) -> Tensor:
    weights = torch.tensor(line, dtype=x.dtype, device=x.device) / sum(line)
    kernel = torch.outer(weights, weights).expand(x.shape[1], 1, len(line), len(line))
    return functional.conv2d(x, kernel, groups=x.shape[1], **how)


def enlarge(x: Tensor) -> Tensor:
    return blur(functional.interpolate(x, scale_factor=2), (1, 2, 1), padding=1)


def reduce(x: Tensor) -> Tensor:
    return blur(x, (1, 3, 3, 1), padding=1, stride=2)


class Modulated(nn.Module):
    """Convolution with scaled inputs, noise, bias, rectifier."""

    def __init__(self, n_in: int, n_out: int, style: int, *, larger: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in, 3, 3))
        self.bias = nn.Parameter(torch.zeros(n_out))
        self.noise = nn.Parameter(torch.zeros(()))
        self.style = Dense(style, n_in, 1.0)
        self.larger = larger

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        scales = self.style(style)
        squared = self.weight.square().sum(dim=(2, 3))  # (out, in)
        after = GAIN * torch.rsqrt(scales.square() @ squared.T + 1e-8)
        x = functional.conv2d(x * scales[:, :, None, None], self.weight, padding=1)
        x = x * after[:, :, None, None]
        x = enlarge(x) if self.larger else x
        drawn = torch.randn(x.shape[0], 1, *x.shape[2:], device=x.device)
        return rectify(x + (drawn * self.noise + self.bias[:, None, None]) * GAIN)


class Generator(nn.Module):
    def __init__(self, task: Mapping[str, Any]) -> None:
        super().__init__()
        channels = {int(r): n for r, n in task["channels"].items()}
        style, self.n_layers = task["latent"], 2 * len(channels)
        self.code = Dense(task["n_code"], style)
        self.mapping = nn.ModuleList(
            Dense(2 * style if i == 0 else style, style) for i in range(task["n_mapping"])
        )
        self.constant = nn.Parameter(torch.randn(channels[4], 4, 4))
        self.layers, self.scales, self.logits = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for r, n in channels.items():
            if r > 4:
                self.layers.append(Modulated(channels[r // 2], n, style, larger=True))
            self.layers.append(Modulated(n, n, style, larger=False))
            self.scales.append(Dense(style, n, 1.0))
            self.logits.append(Convolution(1, n, task["n_channels"]))

    def styles(self, latents: Tensor, codes: Tensor) -> Tensor:
        def normalised(x: Tensor) -> Tensor:
            return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)

        x = torch.cat([normalised(latents), normalised(self.code(codes))], dim=1)
        for layer in self.mapping:
            x = rectify(layer(x)) * GAIN
        return x

    def mixed(self, latents: Tensor, others: Tensor, codes: Tensor) -> Tensor:
        """Return styles of all layers: of one latent up to a layer, then of another."""
        own, other = self.styles(latents, codes), self.styles(others, codes)
        crossover = torch.randint(1, self.n_layers, (len(own), 1), device=own.device)
        is_own = torch.arange(self.n_layers, device=own.device) < crossover
        return torch.where(is_own[:, :, None], own[:, None], other[:, None])

    def forward(self, styles: Tensor) -> Tensor:
        x = self.constant.expand(len(styles), *self.constant.shape)
        layers = iter(self.layers)
        logits: Tensor | None = None
        for i, (scale, convolution) in enumerate(zip(self.scales, self.logits, strict=True)):
            if i:
                x = next(layers)(x, styles[:, 2 * i])
            x = next(layers)(x, styles[:, 2 * i + 1])
            own = convolution(x * scale(styles[:, 2 * i + 1])[:, :, None, None])
            logits = own if logits is None else enlarge(logits) + own
        assert logits is not None
        return logits


def classify(logits: Tensor) -> Tensor:
    probabilities = logits.softmax(dim=1)
    hard = functional.one_hot(logits.argmax(dim=1), logits.shape[1]).permute(0, 3, 1, 2)
    return probabilities + (hard - probabilities).detach()


class Discriminator(nn.Module):
    def __init__(self, task: Mapping[str, Any]) -> None:
        super().__init__()
        channels = {int(r): n for r, n in task["channels"].items()}
        finest, n = max(channels), channels[4]
        self.input = Convolution(1, task["n_channels"], channels[finest])
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [
                    Convolution(3, channels[r], channels[r]),
                    Convolution(3, channels[r], channels[r // 2]),
                    Convolution(1, channels[r], channels[r // 2], bias=False),
                ]
            )
            for r in sorted(channels, reverse=True)
            if r > 4
        )
        self.last = Convolution(3, n + 1, n)
        self.dense, self.score = Dense(16 * n, n), Dense(n, 1)
        self.code = nn.ModuleList(
            Dense(task["n_code"] if i == 0 else n, n) for i in range(N_CODE_LAYERS)
        )

    def forward(self, slices: Tensor, codes: Tensor) -> Tensor:
        x = rectify(self.input(2 * slices - 1, GAIN))
        for first, second, skip in self.blocks:
            y = reduce(rectify(first(x, GAIN)))
            x = rectify(second(y, GAIN * math.sqrt(0.5))) + skip(reduce(x), math.sqrt(0.5))
        n, group = len(x), max(g for g in range(1, GROUP + 1) if len(x) % g == 0)
        y = x.reshape(group, n // group, *x.shape[1:])
        y = torch.sqrt(y.var(dim=0, correction=0) + 1e-8).mean(dim=(1, 2, 3))
        y = y.repeat(group)[:, None, None, None].expand(n, 1, 4, 4)
        x = rectify(self.last(torch.cat([x, y], dim=1), GAIN))
        x = rectify(self.dense(x.flatten(1)) * GAIN)
        direction = self.code[1](rectify(self.code[0](codes) * GAIN))
        return self.score(x)[:, 0] + (x * direction).sum(dim=1) / math.sqrt(x.shape[1])


class Training:
    """Steps on random blocks of classes, with each phase as often as the task says."""

    def __init__(self, task: Mapping[str, Any], memory: Any) -> None:
        self.task, self.size = task, task["batch_size"]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.generator = Generator(task).to(self.device, memory_format=memory)
        self.average = Generator(task).to(self.device, memory_format=memory)
        self.discriminator = Discriminator(task).to(self.device, memory_format=memory)
        rate = {"lr": task["learning_rate"], "betas": (0.0, 0.99), "fused": True}
        self.of_generator = torch.optim.Adam(self.generator.parameters(), **rate)
        self.of_discriminator = torch.optim.Adam(self.discriminator.parameters(), **rate)
        r, n = task["resolution"], task["n_channels"]
        blocks = torch.randint(0, n, (self.size, r // 8, r // 8)).repeat_interleave(8, 1)
        one_hot = functional.one_hot(blocks.repeat_interleave(8, 2), n).permute(0, 3, 1, 2)
        self.real = one_hot.float().to(self.device, memory_format=memory)
        self.path_mean = torch.zeros((), device=self.device)
        self.precision = torch.autocast(
            self.device.type, torch.bfloat16, enabled=task["precision"] == "bfloat16"
        )

    def codes(self, n: int) -> Tensor:
        return torch.randn(n, self.task["n_code"], device=self.device)

    def drawn(self, n: int) -> tuple[Tensor, Tensor]:
        """Return styles, and the codes of the places that they are of."""
        codes = self.codes(n)
        latents = torch.randn(2, n, self.task["latent"], device=self.device)
        return self.generator.mixed(latents[0], latents[1], codes), codes

    def step(self, number: int) -> None:
        with self.precision:
            self.discriminator_step()
            if number % self.task["penalty_every"] == 0:
                self.penalty_step()
            self.generator_step()
            if self.task["path_every"] and number % self.task["path_every"] == 0:
                self.path_step()
        with torch.no_grad():
            old, new = list(self.average.parameters()), list(self.generator.parameters())
            torch._foreach_lerp_(old, new, 0.01)

    def discriminator_step(self) -> None:
        with torch.no_grad():
            styles, codes = self.drawn(self.size)
            shown = classify(self.generator(styles))
        generated = self.discriminator(shown, codes)
        real = self.discriminator(self.real, self.codes(self.size))
        loss = functional.softplus(generated).mean() + functional.softplus(-real).mean()
        self.take(self.of_discriminator, loss)

    def penalty_step(self) -> None:
        real = self.real.detach().requires_grad_()
        score = self.discriminator(real, self.codes(self.size)).sum()
        (found,) = torch.autograd.grad(score, real, create_graph=True)
        self.take(self.of_discriminator, found.square().sum(dim=(1, 2, 3)).mean())

    def generator_step(self) -> None:
        styles, codes = self.drawn(self.size)
        shown = classify(self.generator(styles))
        loss = functional.softplus(-self.discriminator(shown, codes)).mean()
        differences = shown.mean(dim=(2, 3)) - self.real.mean(dim=(2, 3))
        first, second = (part.mean(dim=0) for part in differences.chunk(2))
        self.take(self.of_generator, loss + (first * second).sum())

    def path_step(self) -> None:
        styles, _ = self.drawn(self.size // 2)
        probabilities = self.generator(styles).softmax(dim=1)
        scaled = torch.randn_like(probabilities) / probabilities.shape[-1]
        (found,) = torch.autograd.grad((probabilities * scaled).sum(), styles, create_graph=True)
        lengths = torch.sqrt(found.square().sum(dim=2).mean(dim=1) + 1e-12)
        self.path_mean = self.path_mean.lerp(lengths.detach().mean(), 0.01)
        self.take(self.of_generator, (lengths - self.path_mean).square().mean())

    def take(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def images_per_second(task: Mapping[str, Any], memory: Any, seconds: float) -> float:
    """Take whole rounds of steps until the time is over; the first does not count."""
    training, n = Training(task, memory), task["round"]

    def take(done: int) -> None:
        for number in range(done * n, (done + 1) * n):
            training.step(number)
        training.path_mean.item()  # waits for the device

    take(0)
    done, begun = 1, time.perf_counter()
    while done == 1 or time.perf_counter() - begun < seconds:
        take(done)
        done += 1
    return (done - 1) * n * task["batch_size"] / (time.perf_counter() - begun)


def main() -> None:
    task = json.loads(sys.argv[1])
    torch.manual_seed(0)
    memories = (torch.contiguous_format, torch.channels_last)
    trials = [images_per_second(task, memory, 0) for memory in memories]
    print(images_per_second(task, memories[trials.index(max(trials))], task["seconds"]))


if __name__ == "__main__":
    main()
