"""A small convolutional network that tells horizontal stripes from vertical ones."""

# prunus run FILE                     trains and prunes it, into a directory in runs/
# prunus run FILE --set ratio=20      with another setting
# prunus recipes FILE                 lists all settings, with their meaning

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

# Defaults of the settings. A name that is not a setting of prunus becomes one of this recipe, for
# the functions below that take an argument of this name, as `width` here.
settings = dict(
    dense_epochs=2,  # ordinary training first
    epochs=4,  # then pruning, including recovery
    batch_size=25,
    dense_lr=0.01,  # peak learning rates
    lr=0.01,
    ratio=10,  # all parameters / non-zero parameters in the end
    width=8,
)

Batch = tuple[Tensor, Tensor]
Loader = DataLoader[tuple[Tensor, ...]]


def network(width: int) -> nn.Module:
    """Build the network with new random weights."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(width * 6 * 6, 2),
    )


def loaders(batch_size: int) -> tuple[Loader, Loader, Loader]:
    """Return the batches to train on, to validate on, and to test on.

    Take an argument `data` to receive the value of --data, and `seed` for that of --seed. Random
    numbers of torch, Python and NumPy are seeded already.
    """
    stripes = (torch.arange(12) // 2 % 2).float()
    labels = torch.randint(2, (1000,))
    images = torch.where(labels[:, None, None] == 0, stripes[:, None], stripes[None, :])
    images = images[:, None] + torch.randn(1000, 1, 12, 12)
    data = TensorDataset(images, labels)
    train, validation, test = torch.utils.data.random_split(data, [600, 200, 200])
    return (
        DataLoader(train, batch_size, shuffle=True),
        DataLoader(validation, 200),
        DataLoader(test, 200),
    )


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean loss of a batch."""
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def accuracy(model: nn.Module, loader: Loader) -> float:
    """Return the metric on all batches of a loader; the model is in evaluation mode."""
    hits = [model(images).argmax(dim=1) == labels for images, labels in loader]
    return float(torch.cat(hits).float().mean())


metric = accuracy  # its name in tables; leave it out to use the validation loss
mode = "max"  # larger is better


def optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Return the optimizer; leave it out to use Adam."""
    return torch.optim.Adam(model.parameters(), lr=lr)


def example_inputs(batch_size: int) -> Tensor:
    """Return inputs of the network for export and bench; by default those of a training batch."""
    return torch.rand(batch_size, 1, 12, 12)
