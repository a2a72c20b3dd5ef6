"""PyTorch, eager or compiled, in channels-last layout, on the GPU if it finds one."""
# PyTorch is an optional dependency.
# pyright: reportMissingImports=false, reportArgumentType=false, reportCallIssue=false

import time

import numpy as np

from benchmarks.frameworks.adapter import (
    MAX_BATCH,
    Stopwatch,
    bounds_of_part,
    load_images,
    network_of,
    way_back,
)
from benchmarks.frameworks.environment import cpu_count
from cae_jax.config import TrainConfig


class Torch:
    """A `Framework`; the images are one tensor and batches are indexed, without a data loader."""

    def __init__(
        self, config: TrainConfig, watch: Stopwatch, images: str | None, *, compiled: bool
    ):
        with watch("import"):
            import torch
        torch.set_num_threads(cpu_count())
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        with watch("data"):
            tensors = map(as_tensor, load_images(config, images))
            self.images, self.test_images = (tensor.to(self.device) for tensor in tensors)
        with watch("initialise"):
            torch.manual_seed(config.seed)
            model = torch_model(*network_of(config)).to(self.device)
            model = model.to(memory_format=torch.channels_last)
            # With CUDA graphs, where there is a GPU.
            mode = "max-autotune" if self.device == "cuda" else "default"
            self.model = torch.compile(model, mode=mode) if compiled else model
            self.optimizer = torch.optim.Adam(
                model.parameters(),
                lr=config.learning_rate,
                betas=(config.b1, config.b2),
                eps=config.eps,
                fused=True,
            )
        self.loss = torch.nn.BCEWithLogitsLoss()
        self.batch_size = config.batch_size
        self.schedule = None
        if config.schedule == "cosine":
            steps = -(-len(self.images) // config.batch_size) * config.epochs
            warmup = torch.optim.lr_scheduler.LinearLR(
                self.optimizer, 1e-3, total_iters=config.warmup_steps
            )
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(
                self.optimizer, steps - config.warmup_steps
            )
            self.schedule = torch.optim.lr_scheduler.SequentialLR(
                self.optimizer, [warmup, cosine], [config.warmup_steps]
            )
        self.calls = {"reconstruct": self._reconstruct}

    def first_step(self) -> float:
        return self._step(self.images[: self.batch_size]).item()

    def epochs(self, count: int) -> list[tuple[float, float]]:
        import torch

        results = []
        for _ in range(count):
            began = time.perf_counter()
            total = torch.zeros((), device=self.device)
            order = torch.randperm(len(self.images), device=self.device)
            for batch in order.split(self.batch_size):
                total += self._step(self.images[batch]) * len(batch)
            loss = total.item() / len(self.images)
            results.append((time.perf_counter() - began, loss))
        return results

    def evaluate(self) -> float:
        import torch

        with torch.inference_mode():
            batches = self.test_images.split(MAX_BATCH)
            total = sum(self.loss(self.model(x), x).item() * len(x) for x in batches)
        return total / len(self.test_images)

    def train_part(self, part: int) -> None:
        import torch

        if part == 0:
            order = torch.randperm(len(self.images), device=self.device)
            self.order = order.split(self.batch_size)
        first, last = bounds_of_part(part, len(self.order))
        for batch in self.order[first:last]:
            self._step(self.images[batch])

    def _step(self, x):
        self.optimizer.zero_grad()
        loss = self.loss(self.model(x), x)
        loss.backward()
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        return loss.detach()  # of CUDA graphs to be read before the next step, as the sum does

    def _reconstruct(self, images: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            batches = as_tensor(images).to(self.device).split(MAX_BATCH)
            outputs = [self.model(x).sigmoid().cpu() for x in batches]
        return torch.cat(outputs).permute(0, 2, 3, 1).numpy()


def as_tensor(images: np.ndarray):
    """Views ``[N, H, W, C]`` as ``[N, C, H, W]`` with channels-last strides."""
    import torch

    return torch.from_numpy(images).permute(0, 3, 1, 2)


def torch_model(image_shape=(28, 28, 1), features=(16, 8, 8)):
    """Builds the convolutional network from PyTorch's layers, initialised like Keras's."""
    from torch import nn

    def conv(n_in, n_out, padding=1):
        layer = nn.Conv2d(n_in, n_out, 3, padding=padding)
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer

    layers, n_in = [], image_shape[-1]
    for width in features:  # 28 -> 14 -> 7 -> 4
        layers += [conv(n_in, width), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
        n_in = width
    layers.append(conv(n_in, n_in))
    for width, padded in way_back(image_shape, features):  # 4 -> 8, 8 -> 16 -> 14, 14 -> 28
        layers += [nn.ReLU(), nn.Upsample(scale_factor=2), conv(n_in, width, int(padded))]
        n_in = width
    return nn.Sequential(*layers)
